"""Attention over several rows in one."""
