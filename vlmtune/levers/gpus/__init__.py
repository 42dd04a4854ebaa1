"""Levers of several GPUs: how many, and what each of them holds."""
