"""Units of memory, and rates in digits. Sizes are whole bytes everywhere; these turn them into what people read."""

KIB, MIB, GIB = 2**10, 2**20, 2**30
GB = 10**9
"""What makers of cards and disks count in."""


def rate_format(value: float) -> str:
    """Return how a rate is written: in three digits, or whole from a thousand on, where `.3g` says 2e+03."""
    return ",.0f" if value >= 999.5 else ".3g"


def rate(value: float) -> str:
    """Return a rate as people read it: `0.31`, `13.3`, `2,231`."""
    return format(value, rate_format(value))
