"""How adapters are computed."""
