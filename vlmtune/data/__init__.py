"""From data files to batches: rows of many shapes, images, tokens and labels."""
