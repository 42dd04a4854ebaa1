"""Rows asked of what runs have learned."""
