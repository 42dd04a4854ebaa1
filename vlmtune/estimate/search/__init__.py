"""The config that fits a card."""
