"""Layers with parameters of their own for each group, applied to all groups in one product."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..groups import QueryGroups


class PerGroup(nn.Module):
    """A module whose parameters are stacked: their first axis is the group."""


class GroupLinear(PerGroup):
    """K linear layers, each with random weights of its own, as `nn.Linear` draws them."""

    def __init__(self, groups: QueryGroups, input_dim: int, output_dim: int):
        super().__init__()
        bound = 1 / math.sqrt(input_dim)
        shape = (groups.num_groups, output_dim)
        self.weight = nn.Parameter(torch.empty(*shape, input_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

    def forward(self, x: Tensor, groups: QueryGroups) -> Tensor:
        """Maps (K, M, input_dim), or (1, M, .) for all groups alike, to (K, M, output_dim)."""
        weight, bias = groups.parts_of(self.weight), groups.parts_of(self.bias)
        x = x.expand(groups.num_groups, -1, -1)
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


class GroupLayerNorm(PerGroup):
    """K layer norms, each with parameters of its own."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups.num_groups, d_model))
        self.bias = nn.Parameter(torch.zeros(groups.num_groups, d_model))

    def forward(self, x: Tensor, groups: QueryGroups) -> Tensor:
        """Normalises (K, M, C)."""
        normed = F.layer_norm(x, x.shape[-1:])
        weight, bias = (groups.parts_of(p)[:, None] for p in (self.weight, self.bias))
        return torch.addcmul(bias, normed, weight)


class GroupMLP(nn.Module):
    """K multi-layer perceptrons with ReLU between their layers."""

    def __init__(
        self, groups: QueryGroups, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int
    ):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        pairs = zip(dims[:-1], dims[1:], strict=True)
        self.layers = nn.ModuleList(GroupLinear(groups, n, m) for n, m in pairs)

    def forward(self, x: Tensor, groups: QueryGroups) -> Tensor:
        """Maps (K, M, input_dim) to (K, M, output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x, groups), inplace=True)
        return self.layers[-1](x, groups)
