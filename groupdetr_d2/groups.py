"""K groups of object queries: everything Group DETR (arXiv 2207.13085) adds to a DETR.

The groups lie side by side on the query axis, ``[group 0 | group 1 | ... | group K-1]``; each is
the N queries of an ordinary DETR, after P denoising queries of its own if the model has any. Only
self-attention, matching and the loss normaliser can tell groups apart; every other operation of a
DETR treats queries independently. Inference uses group 0 alone, the primary group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class QueryGroups:
    """The number of queries, and which of them belong together.

    Raises:
        UserError: fewer than one query or group, or a negative number of denoising queries.
    """

    num_queries: int  # N
    num_groups: int = 1  # K
    num_denoising: int = 0  # P
    # the paper's ablation (Table 7 c): all queries see one another, whatever their group
    joint_self_attention: bool = False

    def __post_init__(self) -> None:
        if self.num_queries < 1 or self.num_groups < 1 or self.num_denoising < 0:
            raise UserError(
                f"{self} is impossible: MODEL.DETR.NUM_OBJECT_QUERIES and MODEL.DETR.NUM_GROUPS "
                "must be at least 1"
            )

    @property
    def group_size(self) -> int:
        """P + N, the queries that see one another."""
        return self.num_denoising + self.num_queries

    @property
    def bank_size(self) -> int:
        """K * N, the rows of a query bank."""
        return self.num_groups * self.num_queries

    def primary(self) -> "QueryGroups":
        """The groups of inference: one, and no denoising."""
        return replace(self, num_groups=1, num_denoising=0)

    def separate(self) -> "QueryGroups":
        """These groups with joint self-attention switched off."""
        return replace(self, joint_self_attention=False)

    def sized_like(self, queries: Tensor, dim: int) -> "QueryGroups":
        """Returns as many groups, whose queries lie on an axis `dim` of a tensor."""
        return QueryGroups(queries.shape[dim] // self.num_groups, self.num_groups)

    def rows_of(self, bank: Tensor) -> Tensor:
        """Returns the rows of a bank that belong to these groups, a view."""
        return bank[: self.bank_size]

    def parts_of(self, stacked: Tensor) -> Tensor:
        """Returns the parts (K, ...) of these groups, a view; `stacked` may have more."""
        return stacked[: self.num_groups]

    def fold(self, x: Tensor) -> Tensor:
        """Folds (B, K*(P+N), ...) to (B*K, P+N, ...), a view: a group becomes a batch element.

        With joint self-attention all queries see one another, and (B, K*(P+N), ...) stays.
        """
        if self.joint_self_attention:
            return x
        return x.reshape(-1, self.group_size, *x.shape[2:])

    def unfold(self, x: Tensor) -> Tensor:
        """Unfolds (B*K, P+N, ...) to (B, K*(P+N), ...), the inverse of :meth:`fold`."""
        return x.reshape(-1, self.num_groups * self.group_size, *x.shape[2:])

    def split_denoising(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Splits (L, B, K*(P+N), ...) into denoising (L, B, K*P, ...), matched (L, B, K*N, ...)."""
        x = x.unflatten(2, (self.num_groups, self.group_size))
        denoising, matched = x.split([self.num_denoising, self.num_queries], dim=3)
        return denoising.flatten(2, 3), matched.flatten(2, 3)

    def join_denoising(self, denoising: Tensor, matched: Tensor) -> Tensor:
        """Joins (B, K, P, ...) and (B, K*N, ...) to (B, K*(P+N), ...), group by group."""
        return torch.cat([denoising, self.per_group(matched, 1)], dim=2).flatten(1, 2)

    def per_group(self, x: Tensor, dim: int) -> Tensor:
        """Splits the K*N axis `dim` into (K, N), a view."""
        return x.unflatten(dim, (self.num_groups, self.num_queries))

    def offsets(self) -> list[int]:
        """Lists the index of each group's first query, K numbers."""
        return [k * self.num_queries for k in self.numbers()]

    def numbers(self) -> range:
        """The numbers of the groups, 0 .. K-1."""
        return range(self.num_groups)

    def numbers_of(self, query: Tensor) -> Tensor:
        """Returns the group that each query belongs to, by its index 0 .. K*N-1."""
        return torch.div(query, self.num_queries, rounding_mode="floor")

    def normalizer(self, num_targets: float) -> float:
        """Returns the divisor that turns summed losses into a mean over groups (Eq. 7).

        `num_targets` is the batch's number of targets, averaged over processes. The authors' code
        applies the lower bound after the product with K, so that a batch without any target weighs
        K times as much; here the mean over groups holds for every batch.
        """
        return self.num_groups * max(num_targets, 1.0)

    def num_matches(self, counts: Sequence[int]) -> int:
        """Counts the pairs of a one-to-one matching with so many targets in each image."""
        return self.num_groups * sum(min(self.num_queries, count) for count in counts)

    def attention_mask(self, device: torch.device | None = None) -> Tensor:
        """Makes the mask that folding equals, (Q, Q) bool, True where a query may not attend."""
        group = torch.arange(self.num_groups * self.group_size, device=device) // self.group_size
        group = torch.zeros_like(group) if self.joint_self_attention else group
        return group[:, None] != group[None, :]


def resize_query_bank(bank: Tensor, old: QueryGroups, new: QueryGroups) -> Tensor:
    """Resizes a bank (K*N, C) from `old` to `new` groups: truncates or repeats, per group."""
    bank = old.per_group(bank, 0)  # (K, N, C)
    groups = torch.arange(new.num_groups) % old.num_groups
    queries = torch.arange(new.num_queries) % old.num_queries
    return bank[groups][:, queries].flatten(0, 1)


def move_group_to_front(bank: Tensor, group: int, groups: QueryGroups) -> Tensor:
    """Returns the bank with `group` as the primary group, to evaluate it in place of group 0."""
    return groups.per_group(bank, 0).roll(-group, dims=0).flatten(0, 1)
