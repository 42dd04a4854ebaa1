"""Units of memory. Sizes are whole bytes everywhere; these turn them into what people read."""

KIB, MIB, GIB = 2**10, 2**20, 2**30
GB = 10**9
"""What makers of cards and disks count in."""
