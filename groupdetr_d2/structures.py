"""The values that pass between the parts of a DETR.

Shape letters: B images, L decoder layers, K groups, N queries of a group, P denoising queries of a
group, Q queries of all groups (K*(P+N), see groups.py), S memory positions, C channels, D
reference size (2 point, 3 point in space, 4 box), H classes, T targets of the whole batch, M
matched pairs of the whole batch in one decoder layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from .groups import QueryGroups

Value = TypeVar("Value", bound="Targets | Predictions")
AnyTargets = TypeVar("AnyTargets", bound="Targets")
AnyPredictions = TypeVar("AnyPredictions", bound="Predictions")


def sizes_of(shapes: tuple[tuple[int, int], ...], like: Tensor) -> Tensor:
    """Makes a tensor (levels, 2) of each level's width and height, typed and placed as `like`.

    In an export and in a trace they stay functions of the image's size.
    """
    if torch.jit.is_tracing():  # numbers are tensors
        numbers = [torch.as_tensor(n) for h, w in shapes for n in (w, h)]
        return torch.stack(numbers).to(like).view(-1, 2)
    if torch.compiler.is_compiling():
        return torch.stack([like.new_full((), n) for h, w in shapes for n in (w, h)]).view(-1, 2)
    return _sizes(shapes, like.dtype, like.device)


@lru_cache(maxsize=1024)
def _sizes(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Caches the tensor, since a copy to a GPU waits for the device."""
    with torch.inference_mode(False):
        return torch.tensor([(w, h) for h, w in shapes], dtype=dtype, device=device)


@dataclass
class Memory:
    """The memory that decoders attend to: encoder output, all feature levels flattened into S."""

    features: Tensor  # (B, S, C)
    pos: Tensor  # (B, S, C)
    padding_mask: Tensor | None = None  # (B, S), True on padding; None if there is no padding
    spatial_shapes: tuple[tuple[int, int], ...] = ()  # (height, width) per level
    # memories of the same images in other sizes, which decoders attend to as well
    other_sizes: tuple["Memory", ...] = field(default=(), kw_only=True)

    def level(self, index: int) -> "Memory":
        """Returns one level of a memory of several."""
        sizes = [h * w for h, w in self.spatial_shapes]
        part = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        return Memory(
            features=self.features[:, part],
            pos=self.pos[:, part],
            padding_mask=None if self.padding_mask is None else self.padding_mask[:, part],
            spatial_shapes=(self.spatial_shapes[index],),
        )

    def valid_extents(self) -> Tensor:
        """Computes width and height of each level's unpadded part in cells, (B, levels, 2)."""
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
        """Width and height of each level's unpadded part, relative to the level, (B, levels, 2)."""
        return self.valid_extents() / sizes_of(self.spatial_shapes, self.pos)


@dataclass
class Views:
    """The cameras whose images are a model's input together: V views of each sample."""

    img2lidar: Tensor  # (B, V, 4, 4), from pixel times depth (u*d, v*d, d, 1) to metres
    size: tuple[int, int]  # (height, width) of the padded images, in pixels
    padding_mask: Tensor | None = None  # (B, height, width) of all views, True on padding
    interval: Tensor | None = None  # (B,) seconds between two frames, where there are two


@dataclass(kw_only=True)
class ViewMemory(Memory):
    """The memory of several views, one after another."""

    interval: Tensor | None = None  # (B,) seconds between two frames, where there are two


@dataclass
class Queries:
    """The decoder's input."""

    content: Tensor  # (B, Q, C)
    reference: Tensor  # (B, Q, D), relative to the image or to the space of boxes
    pos: Tensor | None = None  # (B, Q, C) if learned rather than derived from `reference`
    attn_mask: Tensor | None = None  # (P+N, P+N) within a group, True where not to attend
    proposals: "Proposals | None" = None  # where they come from, in two-stage models
    cells: Tensor | None = None  # (B, Q) the positions of the memory that proposed them, or None


@dataclass
class QueryPosition:
    """The positional part of the queries at one decoder layer."""

    pos: Tensor  # (B, Q, C), added to the content
    sine: Tensor | None = None  # (B, Q, C), concatenated to it in conditional cross-attention


def map_tensors(value: Value, fn: Callable[[Tensor], Tensor]) -> Value:
    """Applies `fn` to each tensor of a dataclass, whatever a task calls its tensors."""
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    changed: dict[str, Any] = {k: fn(x) for k, x in found.items() if isinstance(x, Tensor)}
    return replace(value, **changed)


@dataclass
class Targets:
    """The objects of a batch, those of all images one after another.

    A task adds tensors of (T, ...); see :class:`groupdetr_d2.losses.box2d.BoxTargets`.
    """

    labels: Tensor  # (T,) in 0 .. H-1
    counts: list[int] = field(kw_only=True)  # targets of each image; they add up to T

    def of_images(self: AnyTargets) -> list[AnyTargets]:
        """The targets of each image by themselves."""
        ends = accumulate(self.counts)
        return [
            replace(map_tensors(self, itemgetter(slice(end - count, end))), counts=[count])
            for end, count in zip(ends, self.counts, strict=True)
        ]

    def repeated(self: AnyTargets, times: int) -> AnyTargets:
        """The targets with those of each image `times` times, one set after another."""
        if times == 1:
            return self
        index = torch.arange(len(self.labels), device=self.labels.device)
        index = torch.cat([part.repeat(times) for part in index.split(self.counts)])
        counts = [times * count for count in self.counts]
        return replace(map_tensors(self, itemgetter(index)), counts=counts)


@dataclass
class Matches:
    """The matched pairs of queries and targets; every decoder layer has the same number M."""

    image: Tensor  # (M,) index of the image
    query: Tensor  # (L, M) index on the query axis
    target: Tensor  # (L, M) index into the batch's T targets
    groups: QueryGroups | None = None  # whose queries these are; None for denoising queries
    # images with a matching cost that was NaN or infinite; their matches are arbitrary
    non_finite_images: list[int] = field(default_factory=list)

    def by_target(self, num_targets: int) -> Tensor:
        """Finds the query of each group that answers for each target, (L, T, K), -1 for none."""
        assert self.groups is not None
        table = self.query.new_full((len(self.query), num_targets, self.groups.num_groups), -1)
        layer = torch.arange(len(self.query), device=self.query.device)[:, None]
        table[layer, self.target, self.groups.numbers_of(self.query)] = self.query
        return table


@dataclass
class PerImage:
    """A tensor among predictions that belongs to the images rather than to queries."""

    value: Tensor  # (B, ...)

    def of_image(self, index: int) -> "PerImage":
        """The part of one image, (...)."""
        return PerImage(self.value[index])


@dataclass
class Predictions:
    """The outputs of the queries at every decoder layer, last layer last.

    A task adds tensors of (L, B, Q, ...), see :class:`groupdetr_d2.losses.box2d.BoxPredictions`,
    and what all queries of an image share as :class:`PerImage`.
    """

    logits: Tensor  # (L, B, Q, H)
    # in training, if the model has denoising queries
    denoised: "Denoised | None" = field(default=None, kw_only=True)
    # if the model has two stages
    proposals: "Proposals | None" = field(default=None, kw_only=True)

    def of_image(self: AnyPredictions, index: int) -> AnyPredictions:
        """The predictions on one image, tensors of (L, Q, ...)."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        shared: dict[str, Any] = {
            k: x.of_image(index) for k, x in found.items() if isinstance(x, PerImage)
        }
        return replace(map_tensors(self, lambda x: x[:, index]), **shared)

    def of_group(self: AnyPredictions, index: int, groups: QueryGroups) -> AnyPredictions:
        """The predictions of one group's queries, tensors of (L, B, N, ...)."""
        return map_tensors(self, lambda x: groups.per_group(x, 2)[:, :, index])


@dataclass
class Denoised:
    """The predictions of the denoising queries, and the targets that they were made from."""

    predictions: Predictions
    matches: Matches  # fixed by construction; queries that are not in it are background
    repetitions: int  # of each target in a group


@dataclass
class Proposals:
    """The predictions of a two-stage model's first stage, from the encoder's output."""

    predictions: Predictions  # L is 1
    groups: QueryGroups  # how the proposals are divided
    class_agnostic: bool  # whether class 0 stands for any object
