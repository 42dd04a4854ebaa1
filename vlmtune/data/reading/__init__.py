"""Data files of every accepted shape -> rows."""
