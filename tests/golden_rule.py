"""The rule that regenerates the weights, images and targets of the recorded official outputs.

Weights are a function of the official key name, the shape and the seed alone: a normal draw from a
generator seeded with (seed, crc32 of the key), scaled by rank and changed by overrides.
"""

import hashlib
import json
import math
import re
import zlib

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from groupdetr_d2.checkpoint.official import COCO_CATEGORY_IDS
from groupdetr_d2.layers.box_ops import box_cxcywh_to_xyxy
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "data" / "goldens"
SIZES = ((96, 128), (128, 112))


def load_case(name):
    spec = json.loads((FOLDER / f"{name}.json").read_text())
    return spec, np.load(FOLDER / f"{name}.npz")


DIRECTIONS = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]


def make_array(key, shape, seed, overrides):
    normal = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    values = normal = normal.astype(np.float32)
    if len(shape) > 1:
        gain = 2.0 if len(shape) == 4 else 1.0
        values = values * np.float32(math.sqrt(gain / math.prod(shape[1:])))
    elif key.endswith("running_var"):
        values = 1 + np.float32(0.1) * np.abs(values)
    elif key.endswith("weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    for pattern, rule in overrides.items():
        if re.search(pattern, key):
            values = apply_override(values, normal, rule)
    return values.astype(np.float32)


def apply_override(values, normal, rule):
    word, *numbers = rule.split()
    if word == "centre":
        axes = tuple(range(1, values.ndim))
        return values - values.astype(np.float64).mean(axes, keepdims=True).astype(np.float32)
    if word == "scale":
        return values * np.float32(numbers[0])
    if word == "ones_last":
        values = np.ones_like(values)
        values[-1] = np.float32(numbers[0])
        return values
    if word == "std":  # std X [row0 Y]
        values = normal * np.float32(numbers[0])
        if numbers[1:]:
            values[0] = normal[0] * np.float32(numbers[2])
        return values
    if word == "msda_grid":  # heads, levels, points: steps along each head's direction
        heads, levels, points = map(int, numbers)
        steps = np.arange(1, points + 1, dtype=np.float32)[:, None]
        grid = np.array(DIRECTIONS, np.float32)[:, None, None] * steps
        return np.broadcast_to(grid, (heads, levels, points, 2)).reshape(values.shape)
    return values * float(rule.removeprefix("*"))


def make_state_dict(spec):
    """The official model's weights; a wrong rule would not give the recorded checksum."""
    digest, state = hashlib.sha256(), {}
    for key, shape in spec["state_dict"]:
        key_of_values = spec.get("aliases", {}).get(key, key)  # tensors registered twice
        values = make_array(key_of_values, tuple(shape), spec["seed"], spec["overrides"])
        digest.update(key.encode() + b"\0" + np.ascontiguousarray(values, "<f4").tobytes())
        state[key] = torch.from_numpy(values)
    assert digest.hexdigest() == spec["weights_sha256"]
    return state


def make_inputs(spec, counts=(5, 3)):
    """Two images with their targets, those beyond `counts` left out; labels are COCO ids."""
    batch = []
    for i, (height, width) in enumerate(SIZES):
        image = np.random.default_rng([spec["seed"], 1000 + i]).integers(
            0, 256, (height, width, 3), np.uint8
        )
        rng, number = np.random.default_rng([spec["seed"], 2000 + i]), (5, 3)[i]
        centers, sizes = rng.uniform(0.25, 0.75, (number, 2)), rng.uniform(0.1, 0.4, (number, 2))
        labels = torch.from_numpy(rng.choice(COCO_CATEGORY_IDS, number))
        boxes = torch.from_numpy(np.concatenate([centers, sizes], 1).astype(np.float32))
        instances = Instances((height, width))
        scale = torch.tensor([width, height, width, height])
        instances.gt_boxes = Boxes(box_cxcywh_to_xyxy(boxes) * scale)
        instances.gt_classes = labels
        batch.append(
            {
                "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
                "instances": instances[: counts[i]],
                "height": height,
                "width": width,
            }
        )
    return batch
