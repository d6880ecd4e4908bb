"""Checkpoints: safe, group-aware loading and converters from official key names."""

from .checkpointer import CheckpointError, GroupCheckpointer

__all__ = ["CheckpointError", "GroupCheckpointer"]
