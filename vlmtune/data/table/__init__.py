"""Rows of large data files on disk: made once, mapped into memory, looked at and counted once."""
