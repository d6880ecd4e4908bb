"""The queries of the decoder: from a bank of K*N learned rows, or computed from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..groups import QueryGroups
from ..layers.initialisation import xavier_init
from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32
from ..structures import Memory, Queries, QueryPosition


class QueryBank(nn.Module):
    """A bank of K*N learned rows, group by group.

    The buffer `shape`, [K, N], travels in checkpoints: without it a bank of 3300 rows could be 11
    groups of 300 or 33 of 100, and loading it into a model of other K or N would mix the groups.
    """

    def __init__(self, groups: QueryGroups, dim: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.randn(groups.bank_size, dim))
        self.register_buffer("shape", torch.tensor([groups.num_groups, groups.num_queries]))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Refuses a bank of other K or N, of which other checkpointers would load `shape` alone.

        Raises:
            UserError: naming both sizes and the checkpointer that fits banks.
        """
        found = state_dict.get(f"{prefix}shape")
        if found is not None and found.numel() == 2 and found.tolist() != self.shape.tolist():
            (old_groups, old_queries), (groups, queries) = found.tolist(), self.shape.tolist()
            raise UserError(
                f"{prefix}weight: the checkpoint has K = {old_groups} groups of N = {old_queries} "
                f"queries, the model K = {groups} of N = {queries}: "
                "groupdetr_d2.checkpoint.GroupCheckpointer fits them"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, groups: QueryGroups) -> Tensor:
        """Returns the rows of `groups`, (K*N, C)."""
        return groups.rows_of(self.weight)


def for_each_image(rows: Tensor, memory: Memory) -> Tensor:
    """Expands (K*N, C) to (B, K*N, C), a view."""
    return rows.expand(memory.features.shape[0], -1, -1)


class PositionQueries(nn.Module):
    """Conditional DETR's queries: no content yet, a learned position and its point."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, d_model)
        self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def reset_parameters(self) -> None:
        """Initialises the head of the points as the official code does; the bank stays N(0, 1)."""
        xavier_init(self.ref_point_head)

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        pos = self.bank(groups)  # (K*N, C)
        reference = at_least_float32(self.ref_point_head(pos)).sigmoid()  # (K*N, 2)
        pos, reference = (for_each_image(x, memory) for x in (pos, reference))
        return Queries(content=torch.zeros_like(pos), reference=reference, pos=pos)


class AnchorQueries(nn.Module):
    """DAB-DETR's queries: learned boxes (their logits), no content yet."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, 4)
        self.d_model = d_model

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        reference = for_each_image(at_least_float32(self.bank(groups)).sigmoid(), memory)
        content = reference.new_zeros(*reference.shape[:2], self.d_model)
        return Queries(content=content, reference=reference)


class LearnedQueries(nn.Module):
    """Deformable DETR's queries: learned positions, their points, and learned content."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, 2 * d_model)
        self.reference_head = nn.Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_head.weight)
        nn.init.zeros_(self.reference_head.bias)

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        pos, content = self.bank(groups).chunk(2, dim=-1)  # (K*N, C) each
        reference = at_least_float32(self.reference_head(pos)).sigmoid()  # (K*N, 2)
        content, reference, pos = (for_each_image(x, memory) for x in (content, reference, pos))
        return Queries(content=content, reference=reference, pos=pos)


class LearnedAnchorQueries(nn.Module):
    """DAB-Deformable-DETR's queries: learned boxes (their logits) and learned content.

    Args:
        indicator: channels at the end of the content that stay zero, which denoising fills.
    """

    def __init__(self, groups: QueryGroups, d_model: int, indicator: int = 0):
        super().__init__()
        self.bank = QueryBank(groups, 4)
        self.content_bank = QueryBank(groups, d_model - indicator)
        self.indicator = indicator

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        reference = at_least_float32(self.bank(groups)).sigmoid()  # (K*N, 4)
        content = F.pad(self.content_bank(groups), (0, self.indicator))  # (K*N, C)
        content, reference = (for_each_image(x, memory) for x in (content, reference))
        return Queries(content=content, reference=reference)


class FixedQueryPosition(nn.Module):
    """A query position that is the learned one at every decoder layer."""

    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """Returns the learned positions of the queries, (B, Q, C)."""
        assert queries.pos is not None
        return QueryPosition(queries.pos)
