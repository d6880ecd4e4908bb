"""Parts that compute in full precision, whatever autocast does around them."""

import contextlib

import torch


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Switches autocast off, on devices that have it."""
    has_autocast = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext()
