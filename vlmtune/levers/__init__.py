"""The ways to spend less memory or time, one file each."""
