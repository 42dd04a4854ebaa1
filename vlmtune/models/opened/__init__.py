"""Tokenizers, processors and chat templates that strangers wrote, opened behind limits."""
