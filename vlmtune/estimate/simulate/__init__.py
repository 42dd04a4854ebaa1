"""A training step without weights, and what it allocates."""
