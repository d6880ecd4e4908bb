"""Two-stage queries: the encoder's output proposes boxes, the best of which become queries.

Deformable DETR (Zhu et al., ICLR 2021, A.4), and the forms that DAB-Deformable-DETR and DINO made
of it. Every group has a projection and a pair of heads of its own, and so proposals of its own (the
Group DETR paper's A.2); copies of one pair would propose the same boxes for ever.
"""

import math

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.box_ops import mirrored
from ..layers.per_group import GroupLayerNorm, GroupLinear, GroupMLP
from ..layers.position_encoding import at_least_float32, sine_embedding
from ..losses.box2d import BoxPredictions
from ..structures import Memory, Proposals, Queries
from .box_predictor import PRIOR_PROBABILITY
from .queries import QueryBank, for_each_image
from .reference_points import cell_centers

ANCHOR_SIZE = (
    0.05  # of the finest level's anchors, relative to the image; doubles from level to level
)
BORDER = 0.01  # anchors closer to 0 or 1 than this are left out
# numbers held at a time while all positions are scored; elsewhere than on a CPU there is one part,
# whatever the number of groups, unless it would take 1 GiB in float32
CHUNKS = {"cpu": 2**25}
LARGEST_CHUNK = 2**28


class ProposalHeads(nn.Module):
    """K projections of the memory, and K pairs of heads, one of each per group."""

    def __init__(self, groups: QueryGroups, d_model: int, num_classes: int):
        super().__init__()
        self.projection = GroupLinear(groups, d_model, d_model)
        self.norm = GroupLayerNorm(groups, d_model)
        self.class_head = GroupLinear(groups, d_model, num_classes)
        self.box_head = GroupMLP(groups, d_model, d_model, 4, 3)
        for weight in self.projection.weight:
            nn.init.xavier_uniform_(weight)
        nn.init.constant_(self.class_head.bias, -math.log(1 / PRIOR_PROBABILITY - 1))
        nn.init.zeros_(self.box_head.layers[-1].get_parameter("weight"))
        nn.init.zeros_(self.box_head.layers[-1].get_parameter("bias"))

    def features(self, tokens: Tensor, groups: QueryGroups) -> Tensor:
        """Projects (K, M, C), or (1, M, C) for all groups alike, to (K, M, C)."""
        return self.norm(self.projection(tokens, groups), groups)

    @torch.no_grad()
    def scores(self, tokens: Tensor, groups: QueryGroups, class_agnostic: bool) -> Tensor:
        """Scores (1, M, C) as (K, M): class 0's logit, or the best class's; part by part."""
        if torch.compiler.is_compiling():  # an export has one part, whatever the image's size
            parts = [tokens]
        else:
            chunk = CHUNKS.get(tokens.device.type, LARGEST_CHUNK)
            parts = tokens.split(max(1, chunk // (groups.num_groups * tokens.shape[-1])), dim=1)
        scores = []
        for part in parts:
            logits = self.class_head(self.features(part, groups), groups)
            scores.append(logits[..., 0] if class_agnostic else logits.amax(-1))
        return torch.cat(scores, 1)


class TwoStageQueries(nn.Module):
    """The best N positions of the memory as queries, for each group by its own heads.

    If there are fewer than N positions, some are taken more than once.

    Args:
        content: what the queries start from besides their boxes: one of the classes below.
        class_agnostic: whether class 0 stands for any object and the loss is over all positions
            (Deformable DETR); else classes are real and the loss is over those that are taken.
    """

    def __init__(self, heads: ProposalHeads, content: nn.Module, *, class_agnostic: bool = False):
        super().__init__()
        self.heads, self.content, self.class_agnostic = heads, content, class_agnostic

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        anchors, valid = make_anchors(memory)  # (B, S, 4), (B, S)
        tokens = memory.features.masked_fill(~valid[..., None], 0)  # (B, S, C)
        flat = tokens.detach().flatten(0, 1)[None]
        scores = self.heads.scores(flat, groups, self.class_agnostic)
        cells = self.select(scores.unflatten(1, valid.shape).transpose(0, 1), groups)
        best = cells  # (B, K*N)
        if self.class_agnostic:
            every = torch.arange(valid.shape[1], device=best.device)
            shape = (valid.shape[0], groups.num_groups, -1)
            features, proposed = self._propose(tokens, anchors, every.expand(shape), groups)
            first = torch.arange(groups.num_groups, device=best.device) * valid.shape[1]
            best = (best.unflatten(1, shape[1:]) + first[:, None]).flatten(1)  # of all groups'
        else:
            index = groups.per_group(best, 1)  # (B, K, N)
            features, proposed = self._propose(tokens, anchors, index, groups)
            best = torch.arange(best.shape[1], device=best.device).expand(best.shape)
        boxes = gather(proposed.boxes[0], best).detach()  # (B, K*N, 4)
        proposals = Proposals(proposed, groups.sized_like(proposed.logits, 2), self.class_agnostic)
        content, pos = self.content(gather(features, best), boxes, memory, groups)
        return Queries(content=content, reference=boxes, pos=pos, proposals=proposals, cells=cells)

    def mirrored(self, queries: Queries, memory: Memory, groups: QueryGroups) -> Queries:
        """Mirrors queries that this module made of an image.

        Args:
            memory: that of the mirrored image in the same size. What is taken from it is taken
                where it shows what the queries were made of.

        Returns:
            queries with mirrored boxes, and the content and positions that belong to those.
        """
        assert queries.cells is not None
        anchors, valid = make_anchors(memory)
        tokens = memory.features.masked_fill(~valid[..., None], 0)  # (B, S, C)
        index = groups.per_group(mirrored_cells(queries.cells, memory), 1)  # (B, K, N)
        features, _ = self._propose(tokens, anchors, index, groups)
        boxes = mirrored(queries.reference)
        content, pos = self.content(features, boxes, memory, groups)
        return Queries(content=content, reference=boxes, pos=pos)

    @staticmethod
    def select(scores: Tensor, groups: QueryGroups) -> Tensor:
        """Selects from scores (B, K, S) the indices of the best N, (B, K*N), best first."""
        best = scores.topk(min(groups.num_queries, scores.shape[-1]), dim=-1).indices
        # a small image has fewer than N positions, which then come again
        ranks = torch.arange(groups.num_queries, device=scores.device)
        return best[..., ranks % torch.full_like(ranks, best.shape[-1])].flatten(1)

    def _propose(
        self, tokens: Tensor, anchors: Tensor, index: Tensor, groups: QueryGroups
    ) -> tuple[Tensor, BoxPredictions]:
        """Returns features (B, K*M, C) and predictions at the positions `index`, (B, K, M)."""
        batch, _, number = index.shape

        def by_group(x: Tensor) -> Tensor:  # (B, S, .) -> (K, B*M, .)
            return (
                gather(x, index.flatten(1)).unflatten(1, (-1, number)).transpose(0, 1).flatten(1, 2)
            )

        def by_image(x: Tensor) -> Tensor:  # (K, B*M, .) -> (B, K*M, .)
            return x.unflatten(1, (batch, number)).transpose(0, 1).flatten(1, 2)

        features = self.heads.features(by_group(tokens), groups)
        logits = by_image(at_least_float32(self.heads.class_head(features, groups)))
        offsets = at_least_float32(self.heads.box_head(features, groups))
        boxes = by_image((offsets + by_group(anchors)).sigmoid())
        return by_image(features), BoxPredictions(logits[None], boxes[None])


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Gathers (B, M, C) from (B, S, C) at indices (B, M)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def mirrored_cells(cells: Tensor, memory: Memory) -> Tensor:
    """Finds where a mirrored image's memory shows what an image's memory shows at `cells` (B, M).

    Padding stays on the right in both.
    """
    widths, tables, first = memory.valid_extents()[..., 0].long(), [], 0  # (B, levels)
    for level, (height, width) in enumerate(memory.spatial_shapes):
        x = torch.arange(width, device=cells.device)
        last = widths[:, level, None] - 1
        x = torch.where(x > last, x, last - x)  # (B, width)
        rows = first + width * torch.arange(height, device=cells.device)
        tables.append((rows[None, :, None] + x[:, None]).flatten(1))
        first += height * width
    return torch.cat(tables, 1).gather(1, cells)


def make_anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """Makes a box at every position, as logits (B, S, 4); also returns which count, (B, S).

    Padded positions and boxes at the image's border do not; their logits are infinite.
    """
    centers = cell_centers(memory)  # (B, S, 2)
    by_level = [
        centers.new_full((height * width,), ANCHOR_SIZE * 2**level)
        for level, (height, width) in enumerate(memory.spatial_shapes)
    ]
    sizes = torch.cat(by_level)[None, :, None].expand_as(centers)
    boxes = torch.cat([centers, sizes], -1)
    valid = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(-1)  # (B, S)
    if memory.padding_mask is not None:
        valid = valid & ~memory.padding_mask
    return torch.logit(boxes).masked_fill(~valid[..., None], torch.inf), valid


class SelectedContent(nn.Module):
    """The projected memory at the query's position, without gradient (DAB-Deformable-DETR)."""

    def forward(
        self, features: Tensor, boxes: Tensor, memory: Memory, groups: QueryGroups
    ) -> tuple[Tensor, None]:
        """Returns content (B, K*N, C), and no learned position."""
        return features.detach(), None


class LearnedContent(nn.Module):
    """Learned rows, whatever was selected: DINO's mixed query selection."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, d_model)
        bound = math.sqrt(6 / (groups.num_queries + d_model))  # Xavier's, of one group's rows
        nn.init.uniform_(self.bank.weight, -bound, bound)

    def forward(
        self, features: Tensor, boxes: Tensor, memory: Memory, groups: QueryGroups
    ) -> tuple[Tensor, None]:
        """Returns content (B, K*N, C), and no learned position."""
        return for_each_image(self.bank(groups), memory), None


class BoxContent(nn.Module):
    """Content and position computed from the box (Deformable DETR)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.projection = nn.Linear(2 * d_model, 2 * d_model)
        self.norm = nn.LayerNorm(2 * d_model)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(
        self, features: Tensor, boxes: Tensor, memory: Memory, groups: QueryGroups
    ) -> tuple[Tensor, Tensor]:
        """Returns content and position, (B, K*N, C) each."""
        y, x, w, h = sine_embedding(boxes, features.shape[-1] // 2).chunk(4, -1)
        sine = torch.cat([x, y, w, h], -1)  # in this order here alone
        pos, content = self.norm(self.projection(sine)).chunk(2, -1)
        return content, pos
