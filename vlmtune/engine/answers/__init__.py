"""Answers of a model: several rows at once, and those of held-out rows during training."""
