"""Features of images: which images rows have, where their features are kept, and rows that carry them."""
