"""A running mean of the weights (MODEL.EMA)."""

import copy

import torch
from detectron2.engine import HookBase
from torch import nn

from ..modeling.meta_arch import SetPredictor
from .sharding import parts_of


class MeanWeights:
    """The model with averaged weights; its state is that of the model inside.

    Where parameters are divided among processes, both models are, after this has copied the one;
    PyTorch's `AveragedModel` takes no such model. Buffers are copied, not averaged: the sizes of
    query banks are among them.

    Args:
        decay: share of the mean that is kept in an update.
        ramp: whether that share starts small and grows with the number of updates, and the first
            update takes the weights over; else it is `decay` from the first update on.

    Attributes:
        model: the model with the mean weights, for evaluation.
        updates: iterations averaged so far.
    """

    def __init__(self, model: SetPredictor, decay: float, *, ramp: bool = True):
        self.model, self.updates = copy.deepcopy(model), 0
        self.decay, self.ramp = decay, ramp

    def start(self, model: nn.Module) -> None:
        """Takes the weights over, unless there is a mean already."""
        if not self.updates:
            self._take(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the weights of an iteration to the mean."""
        if self.ramp and not self.updates:
            self._take(model)
        else:
            means, values = parts_of(self.model), parts_of(model)
            torch._foreach_lerp_(means, values, 1 - self._share())
            self._take_buffers(model)
        self.updates += 1

    def _share(self) -> float:
        """The share of the mean that is kept: at first it follows fast, or it stayed behind."""
        ramp = (1 + self.updates) / (10 + self.updates)
        return min(self.decay, ramp) if self.ramp else self.decay

    @torch.no_grad()
    def _take(self, model: nn.Module) -> None:
        for mean, value in zip(parts_of(self.model), parts_of(model), strict=True):
            mean.copy_(value)
        self._take_buffers(model)

    def _take_buffers(self, model: nn.Module) -> None:
        for own, value in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(value)

    def state_dict(self) -> dict:
        """Returns the state of the model, and the number of iterations averaged."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.model.load_state_dict(state_dict["model"])
        self.updates = int(state_dict["updates"])


class MeanWeightsHook(HookBase):
    """Updates the mean after every iteration."""

    def __init__(self, mean: MeanWeights, model: nn.Module):
        self.mean, self.model = mean, model

    def before_train(self) -> None:
        """Starts the mean from the weights that the training starts from."""
        self.mean.start(self.model)

    def after_step(self) -> None:
        """Updates the mean, ahead of checkpoints and evaluation."""
        self.mean.update(self.model)
