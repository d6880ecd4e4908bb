"""Readers of checkpoints, metrics and models, a file a figure or table."""
