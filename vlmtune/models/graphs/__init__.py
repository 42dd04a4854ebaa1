"""Decoder layers as CUDA graphs."""
