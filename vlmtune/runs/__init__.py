"""The run folder: names, records, page."""
