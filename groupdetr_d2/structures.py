"""The values that pass between the parts of a DETR.

Shape letters: B images, L decoder layers, K groups, N queries of a group, P denoising queries of a
group, Q queries of all groups (K*(P+N), see groups.py), S memory positions, C channels, D
reference size (2 point, 3 point in space, 4 box), H classes, T targets of the whole batch, M
matched pairs of the whole batch in one decoder layer.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .groups import QueryGroups


def sizes_of(shapes: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
    """(levels, 2): the width and height of each level, of the type and device of `like`.

    In an export they stay functions of the image's size.
    """
    if torch.compiler.is_compiling():
        return torch.stack([like.new_full((), n) for h, w in shapes for n in (w, h)]).view(-1, 2)
    return _sizes(shapes, like.dtype, like.device)


@lru_cache(maxsize=1024)
def _sizes(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, since a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor([(w, h) for h, w in shapes], dtype=dtype, device=device)


@dataclass
class Memory:
    """What decoders attend to: the encoder's output, all feature levels flattened into S."""

    features: Tensor  # (B, S, C)
    pos: Tensor  # (B, S, C)
    padding_mask: Tensor | None = None  # (B, S), True on padding; None if there is no padding
    spatial_shapes: tuple[tuple[int, int], ...] = ()  # (height, width) per level

    def level(self, index: int) -> "Memory":
        """One level of a memory of several."""
        sizes = [h * w for h, w in self.spatial_shapes]
        part = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        return Memory(
            features=self.features[:, part],
            pos=self.pos[:, part],
            padding_mask=None if self.padding_mask is None else self.padding_mask[:, part],
            spatial_shapes=(self.spatial_shapes[index],),
        )

    def valid_extents(self) -> Tensor:
        """(B, levels, 2): width and height of each level's unpadded part, in cells."""
        if self.padding_mask is None:
            return sizes_of(self.spatial_shapes, self.pos).expand(self.pos.shape[0], -1, -1)
        extents = []
        for i, shape in enumerate(self.spatial_shapes):
            valid = ~self.level(i).padding_mask.unflatten(1, shape)  # (B, H, W)
            size = torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], -1)
            extents.append(size.to(self.pos.dtype))
        return torch.stack(extents, 1)

    @cached_property
    def valid_ratios(self) -> Tensor:
        """(B, levels, 2): width and height of the unpadded part of each level, relative to all."""
        return self.valid_extents() / sizes_of(self.spatial_shapes, self.pos)


@dataclass
class Queries:
    """The decoder's input."""

    content: Tensor  # (B, Q, C)
    reference: Tensor  # (B, Q, D) in [0, 1]
    pos: Tensor | None = None  # (B, Q, C) if learned rather than derived from `reference`
    attn_mask: Tensor | None = None  # (P+N, P+N) within a group, True where barred
    proposals: "Proposals | None" = None  # where they come from, in two-stage models


@dataclass
class QueryPosition:
    """The positional part of the queries at one decoder layer."""

    pos: Tensor  # (B, Q, C), added to the content
    sine: Tensor | None = None  # (B, Q, C), concatenated to it in conditional cross-attention


@dataclass
class Targets:
    """The objects of a batch, those of all images one after another."""

    labels: Tensor  # (T,) in 0 .. H-1
    boxes: Tensor  # (T, 4) cxcywh in [0, 1] of the unpadded image
    counts: list[int]  # targets of each image; they add up to T

    def repeated(self, times: int) -> "Targets":
        """Every image's targets so many times, one set after another."""
        if times == 1:
            return self
        labels = [x.repeat(times) for x in self.labels.split(self.counts)]
        boxes = [x.repeat(times, 1) for x in self.boxes.split(self.counts)]
        return Targets(torch.cat(labels), torch.cat(boxes), [times * n for n in self.counts])


@dataclass
class Denoised:
    """What the denoising queries made of the noised targets that they are.

    Those that `query` does not name are background.
    """

    logits: Tensor  # (L, B, Q, H)
    boxes: Tensor  # (L, B, Q, 4)
    image: Tensor  # (M,) index of the image
    query: Tensor  # (M,) index on the query axis
    target: Tensor  # (M,) index into the batch's T targets
    repetitions: int  # of each target in a group


@dataclass
class Proposals:
    """What the first stage of a two-stage model predicts from the encoder's output."""

    logits: Tensor  # (1, B, Q, H)
    boxes: Tensor  # (1, B, Q, 4) cxcywh in [0, 1]
    groups: QueryGroups  # of Q
    class_agnostic: bool  # whether class 0 stands for any object


@dataclass
class Predictions:
    """All decoder layers' outputs, last layer last."""

    logits: Tensor  # (L, B, K*N, H)
    boxes: Tensor  # (L, B, K*N, 4) cxcywh in [0, 1]
    denoised: Denoised | None = None  # in training, if the model has denoising
    proposals: Proposals | None = None  # if the model has two stages


@dataclass
class Matches:
    """Which query answers for which target; every layer has the same number M of pairs."""

    image: Tensor  # (M,) index of the image
    query: Tensor  # (L, M) index on the query axis
    target: Tensor  # (L, M) index into the batch's T targets
    # images some of whose costs were NaN or infinite: their matches mean nothing
    non_finite_images: list[int] = field(default_factory=list)
