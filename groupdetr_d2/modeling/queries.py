"""Where the decoder's queries come from: a bank of K*N learned rows, or parts computed from it."""

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32
from ..structures import Queries


class QueryBank(nn.Module):
    """K*N learned rows, group by group.

    The buffer `shape`, [K, N], travels in checkpoints: without it a bank of 3300 rows could be 11
    groups of 300 or 33 of 100, and loading it into a model of other K or N would mix the groups.
    """

    def __init__(self, groups: QueryGroups, dim: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.randn(groups.bank_size, dim))
        self.register_buffer("shape", torch.tensor([groups.num_groups, groups.num_queries]))

    def forward(self, groups: QueryGroups) -> Tensor:
        """The rows of `groups`, (K*N, C)."""
        return groups.rows_of(self.weight)


class PositionQueries(nn.Module):
    """Conditional DETR's queries: no content yet, a learned position and its point."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, d_model)
        self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def forward(self, batch_size: int, groups: QueryGroups) -> Queries:
        """Queries of (B, K*N) for a batch of `batch_size` images."""
        pos = self.bank(groups)  # (K*N, C)
        reference = at_least_float32(self.ref_point_head(pos)).sigmoid()  # (K*N, 2)
        pos, reference = (x.expand(batch_size, *x.shape) for x in (pos, reference))
        return Queries(content=torch.zeros_like(pos), reference=reference, pos=pos)


class AnchorQueries(nn.Module):
    """DAB-DETR's queries: learned boxes (their logits), no content yet."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, 4)
        self.d_model = d_model

    def forward(self, batch_size: int, groups: QueryGroups) -> Queries:
        """Queries of (B, K*N) for a batch of `batch_size` images."""
        reference = at_least_float32(self.bank(groups)).sigmoid()  # (K*N, 4)
        reference = reference.expand(batch_size, *reference.shape)
        content = reference.new_zeros(*reference.shape[:2], self.d_model)
        return Queries(content=content, reference=reference)
