"""The attention of queries on an image: maps over the memory, or deformable attention's points."""

import argparse
import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..evaluation.colours import class_colour
from ..evaluation.drawing import sheet
from ..inference.predictor import Predictor
from ..layers.attention import attention_maps
from ..modeling.batch import padded_size
from ..structures import Memory
from ..variants.conditional_detr import ConditionalCrossAttention
from ..variants.deformable_detr import DeformableCrossAttention
from ..variants.mask2former import MaskedAttention
from ..variants.sam_detr import SemanticAlignedCrossAttention
from .output import write_csv
from .trained_model import check_sees_images

TILE = 480  # longer side of a drawn image
SHOWN_POINTS = 64  # heaviest sampling points of a query


@dataclass
class Attended:
    """The places that the queries of one image attend to in one decoder layer."""

    points: Tensor  # (Q, P, 2) x and y in [0, 1]
    weights: Tensor  # (Q, P), mean over heads of what they add up to
    shape: tuple[int, int] | None  # (height, width), if the points are all cells of a map
    padding: tuple[float, float] = (1.0, 1.0)  # height and width of the map, relative to the image


def run(args: argparse.Namespace) -> str:
    """Draws one tile per query: its box, and what it attends to."""
    predictor = Predictor(args.weights, threshold=0.0, opts=args.opts)
    check_sees_images(predictor.task, args.weights)
    image, inputs = predictor.prepare(args.image)
    model = predictor.model
    with torch.no_grad(), recorded_inputs(cross_attention_of(model, args.layer)) as seen:
        predictions: Any = model.predict([inputs], model.groups.primary())
        attended = attended_by(seen["module"], *seen["inputs"])
    height, width = inputs["image"].shape[-2:]
    padded = padded_size([(height, width)], model.padding)
    extent = attended.points.new_tensor([padded[1] / width, padded[0] / height])
    attended.points = attended.points * extent
    attended.padding = (padded[0] / height, padded[1] / width)
    probabilities, boxes = predictor.task.of_queries(predictions, (height, width))
    scores, classes = probabilities.max(-1)
    best = scores.argsort(descending=True)[: args.queries]
    tiles, rows = [], []
    for query in best.tolist():
        box = boxes[query].cpu()
        name = predictor.names[classes[query]]
        tiles.append(draw(image, attended, query, box.numpy(), f"{name} {scores[query]:.2f}"))
        center = (attended.weights[query, :, None] * attended.points[query]).sum(0)
        spread = (attended.points[query] - center).norm(dim=-1) @ attended.weights[query]
        rows.append(
            {
                "query": query,
                "class": name,
                "score": scores[query].item(),
                **dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True)),
                "attends to x": center[0].item(),
                "attends to y": center[1].item(),
                "spread": spread.item(),
            }
        )
    out = Path(args.out)
    cv2.imwrite(str(out / "attention.png"), sheet(tiles, columns=3))
    write_csv(out / "attention.csv", rows)
    mean = np.mean([row["spread"] for row in rows])
    return (
        f"{args.image}: the {len(rows)} best queries attend {mean:.3f} of the image's size around "
        "the middle of their attention on average"
    )


def cross_attention_of(model: nn.Module, layer: int) -> nn.Module:
    """Finds the cross-attention of a decoder layer; a negative number counts from the last.

    Raises:
        UserError: there is no such layer, or it attends to nothing.
    """
    layers = model.get_submodule("head.decoder.layers")
    known = [i for i, x in enumerate(layers.children()) if hasattr(x, "cross_attn")]
    number = layer + len(list(layers.children())) if layer < 0 else layer
    if number not in known:
        raise UserError(f"--layer is {layer}; layers {known[0]} to {known[-1]} have attention")
    return layers.get_submodule(f"{number}.cross_attn")


@contextlib.contextmanager
def recorded_inputs(module: nn.Module) -> Iterator[dict]:
    """Yields a dictionary with the module and, once it was called, its "inputs"."""
    seen = {"module": module}
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs))
    try:
        yield seen
    finally:
        handle.remove()


@functools.singledispatch
def attended_by(
    module: nn.Module, content: Tensor, position, reference: Tensor, memory: Memory
) -> Attended:
    """Computes what the queries of a batch of one image attend to.

    Raises:
        NotImplementedError: the kind of cross-attention is not known here.
    """
    raise NotImplementedError(f"{type(module).__name__} cannot be drawn")


@attended_by.register
def _(module: ConditionalCrossAttention, content, position, reference, memory) -> Attended:
    q, k = module.queries_and_keys(content, position, memory)
    return _dense(attention_maps(q, k, module.num_heads), memory)


@attended_by.register
def _(module: SemanticAlignedCrossAttention, content, position, reference, memory) -> Attended:
    memory = memory.level(module.level)
    q, k = module.queries_and_keys(content, reference, memory)
    return _dense(attention_maps(q, k, module.num_heads), memory)


@attended_by.register
def _(module: MaskedAttention, content, position, reference, memory) -> Attended:
    q, k, blocked = module.queries_and_keys(content, position, reference, memory)
    level = memory.level(module.level)
    return _dense(attention_maps(q, k, module.num_heads, blocked), level)


def _dense(maps: Tensor, memory: Memory) -> Attended:
    """Averages maps (1, heads, Q, S) over heads, at the centres of the cells."""
    ((height, width),) = memory.spatial_shapes
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    weights = maps[0].mean(0).cpu()  # (Q, S)
    points = torch.stack([x, y], -1).flatten(0, 1).expand(len(weights), -1, -1)
    return Attended(points, weights, (height, width))


@attended_by.register
def _(module: DeformableCrossAttention, content, position, reference, memory) -> Attended:
    locations, weights = module.sampling_points(content, position, reference, memory)
    points = locations[0].flatten(1, 3).cpu()  # (Q, heads*levels*points, 2)
    return Attended(points, weights[0].flatten(1).cpu() / weights.shape[2], None)


def draw(
    image: np.ndarray, attended: Attended, query: int, box: np.ndarray, title: str
) -> np.ndarray:
    """Draws a square tile: a map laid over the image, or points of the size of their weight."""
    scale = TILE / max(image.shape[:2])
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    height, width = picture.shape[:2]
    weights = attended.weights[query].float().numpy()
    if attended.shape:
        whole = [round(n * p) for n, p in zip((height, width), attended.padding, strict=True)]
        heat = cv2.resize(weights.reshape(attended.shape), whole[::-1])[:height, :width]
        heat = (255 * np.clip(heat / max(heat.max(), 1e-9), 0, 1)).astype(np.uint8)
        picture = cv2.addWeighted(picture, 0.45, cv2.applyColorMap(heat, cv2.COLORMAP_JET), 0.55, 0)
    else:
        picture = (0.6 * picture).astype(np.uint8)
        for i in np.argsort(weights)[-SHOWN_POINTS:]:
            x, y = (attended.points[query, i].numpy() * (width, height)).round().astype(int)
            radius = 2 + int(round(6 * weights[i] / weights.max()))
            cv2.circle(picture, (int(x), int(y)), radius, class_colour(0), -1, cv2.LINE_AA)
    x0, y0, x1, y1 = (box * (width, height, width, height)).round().astype(int)
    cv2.rectangle(picture, (int(x0), int(y0)), (int(x1), int(y1)), (255, 255, 255), 2)
    cv2.putText(
        picture, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 2, cv2.LINE_AA
    )
    edges = (0, TILE - height, 0, TILE - width)
    return cv2.copyMakeBorder(picture, *edges, cv2.BORDER_CONSTANT)
