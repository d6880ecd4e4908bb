"""A running mean of the weights (MODEL.EMA), on PyTorch's `AveragedModel`."""

from typing import cast

from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..modeling.meta_arch import SetPredictor

Tensors = tuple[Tensor, ...] | list[Tensor]


class MeanWeights:
    """The model with averaged weights; its state is that of the model inside."""

    def __init__(self, model: SetPredictor, decay: float):
        # buffers are copied, not averaged: the sizes of query banks are among them
        def add(means: Tensors, values: Tensors, updates: Tensor | int) -> None:
            count = float(updates)  # at first the mean follows fast, or it would stay at the start
            share = min(decay, (1 + count) / (10 + count))
            get_ema_multi_avg_fn(share)(means, values, updates)

        self.averaged = AveragedModel(model, multi_avg_fn=add)

    @property
    def model(self) -> SetPredictor:
        """The model with the mean weights, for evaluation."""
        return cast(SetPredictor, self.averaged.module)

    def update(self, model: nn.Module) -> None:
        """Adds the weights of an iteration to the mean."""
        self.averaged.update_parameters(model)

    def state_dict(self) -> dict:
        """Returns the state of the model, and the number of iterations averaged."""
        return {"model": self.model.state_dict(), "updates": int(self.averaged.n_averaged)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.model.load_state_dict(state_dict["model"])
        self.averaged.n_averaged.fill_(state_dict["updates"])


class MeanWeightsHook(HookBase):
    """Updates the mean after every iteration."""

    def __init__(self, mean: MeanWeights, model: nn.Module):
        self.mean, self.model = mean, model

    def after_step(self) -> None:
        """Updates the mean, ahead of checkpoints and evaluation."""
        self.mean.update(self.model)
