"""Runs a plan: step, optimizer, trainer, checkpoints, evaluation."""
