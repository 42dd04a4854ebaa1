"""Where the language model's frozen 4-bit layers lie, when not all of them are on each card."""
