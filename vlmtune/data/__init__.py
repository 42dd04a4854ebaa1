"""From data files to batches: rows of many shapes, images, dataset facts and collation."""
