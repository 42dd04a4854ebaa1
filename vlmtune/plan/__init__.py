"""The run, decided: its types, and how each value is chosen."""
