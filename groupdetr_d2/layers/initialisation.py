"""The initialisation that DETRs share."""

from abc import ABC, abstractmethod

from torch import nn


class SelfInitialised(nn.Module, ABC):
    """A module whose parameters start from a scheme of their own instead of Xavier's."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialises the parameters in place."""


def xavier_init(module: nn.Module) -> None:
    """Draws every matrix of a module from Xavier's uniform distribution (Glorot, AISTATS 2010).

    Parts that are :class:`SelfInitialised` then initialise themselves. Biases stay as they are.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, SelfInitialised):
            part.reset_parameters()
