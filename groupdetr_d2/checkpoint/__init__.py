"""Checkpoints: safe, group-aware loading and converters from official key names."""

from .checkpointer import GroupCheckpointer
from .files import CheckpointError, CheckpointWriteError

__all__ = ["CheckpointError", "CheckpointWriteError", "GroupCheckpointer"]
