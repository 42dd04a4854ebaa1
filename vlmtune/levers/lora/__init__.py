"""Levers of the adapters: how large they are, and how they are computed."""
