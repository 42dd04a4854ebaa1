"""Which rows come together, and in which order."""
