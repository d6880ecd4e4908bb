"""The masks of a query over the decoder layers, in every group that answers for the same object."""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.image_file import read_bgr
from ..evaluation.drawing import draw_masks, draw_tile, sheet
from ..layers.mask_ops import resized_logits
from .output import write_csv
from .trained_model import TrainedModel, matches_of

SHOWN_OBJECTS, SHOWN_GROUPS = 3, 5  # rows of a picture


def run(args: argparse.Namespace, trained: TrainedModel) -> str:
    """Draws one picture per image, and measures how masks get better from layer to layer."""
    out, rows = Path(args.out), []
    for image in trained.annotated_images(args.num_images):
        if not 0 < len(image["instances"]) <= trained.model.groups.num_queries:
            continue  # no object, or more than a group has queries
        masks = masks_by_layer(trained, image)  # (K, T, L, H, W)
        picture = draw(image, masks.numpy(), trained.class_names)
        cv2.imwrite(str(out / f"queries_{image['image_id']}.png"), picture)
        rows += rows_of(image, masks)
    if not rows:
        return f"none of the {args.num_images} images has an object"
    write_csv(out / "queries.csv", rows)
    layers = sorted({row["layer"] for row in rows})
    means = [np.mean([row["IoU"] for row in rows if row["layer"] == i]) for i in layers]
    return (
        f"{trained.weights}: IoU of matched queries' masks with their objects, from the learned "
        f"queries to the last layer: {', '.join(f'{mean:.2f}' for mean in means)}"
    )


@torch.no_grad()
def masks_by_layer(trained: TrainedModel, image: dict) -> Tensor:
    """Computes the masks of the queries that answer for an image's objects, (K, T, L, H, W) bool.

    Queries are matched in the last layer.
    """
    model, groups = trained.model, trained.model.groups.separate()
    predictions: Any = model.predict([image], groups)
    targets = model.build_targets([image])
    query = matches_of(model, predictions, targets, groups).by_target(len(targets.labels))[-1]
    height, width = image["image"].shape[-2:]
    layers = []
    for embeddings in predictions.embeddings[:, 0]:  # (K*N, C) each
        logits = torch.einsum("tkc,chw->tkhw", embeddings[query], predictions.features.value[0])
        resized = resized_logits(
            logits.flatten(0, 1), predictions.stride, (height, width), (height, width)
        )
        layers.append(resized.unflatten(0, query.shape) > 0)  # (T, K, H, W)
    return torch.stack(layers, 2).transpose(0, 1).cpu()


def rows_of(image: dict, masks: Tensor) -> list[dict]:
    """Lists the IoU with the object, one row per object, group and layer."""
    truth = image["instances"].gt_masks.tensor.bool()[None, :, None]  # (1, T, 1, H, W)
    overlap = (masks & truth).flatten(3).sum(-1) / (masks | truth).flatten(3).sum(-1).clamp(min=1)
    return [
        {"image": image["image_id"], "object": t, "group": k, "layer": i, "IoU": value}
        for k, groups in enumerate(overlap.tolist())
        for t, layers in enumerate(groups)
        for i, value in enumerate(layers)
    ]


def draw(image: dict, masks: np.ndarray, names: list[str]) -> np.ndarray:
    """Draws a row per object and group: the truth, then the query's mask in every layer."""
    picture, truth = read_bgr(image["file_name"]), image["instances"]
    tiles = []
    for t in range(min(len(truth), SHOWN_OBJECTS)):
        label = [int(truth.gt_classes[t])]
        own = truth.gt_masks.tensor[t : t + 1].numpy()
        for k in range(min(len(masks), SHOWN_GROUPS)):
            tiles.append(_tile(f"{names[label[0]]}, group {k}", picture, own, label))
            for i, mask in enumerate(masks[k, t]):
                tiles.append(_tile(f"layer {i}", picture, mask[None], [k]))
    return sheet(tiles, columns=masks.shape[2] + 1)


def _tile(title: str, picture: np.ndarray, masks: np.ndarray, colours: list[int]) -> np.ndarray:
    return draw_tile(title, picture, lambda scaled: draw_masks(scaled, masks, colours))
