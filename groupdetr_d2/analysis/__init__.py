"""Readers of checkpoints, metrics and models, one file per figure or table."""
