"""Levers that change nothing but the time."""
