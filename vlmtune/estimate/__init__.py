"""What a plan will take on a card, from its own training step run without weights."""
