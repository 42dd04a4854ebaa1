"""Boxes in pictures: read from what rows hold, kept apart from any model, written as the model at hand writes them."""
