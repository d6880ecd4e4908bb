"""The rule that regenerates the inputs of the recorded PETR outputs: images, cameras, targets.

Weights follow the rule of `golden_rule.py`, with overrides of their own.
"""

import hashlib
import math
import re
import zlib

import numpy as np
import torch
from detectron2.structures import Instances

H, W = 64, 160
# degrees counter-clockwise from the lidar's x axis, metres, pixels of a 1600 x 900 image
VIEW_DIRECTIONS = (90.0, 35.0, 145.0, 270.0, 200.0, -20.0)
CAMERA_POSITIONS = (
    *((0.0, 0.76, -0.33), (0.49, 0.61, -0.34), (-0.49, 0.58, -0.33)),
    *((0.0, -0.91, -0.27), (-0.485, 0.09, -0.25), (0.48, 0.07, -0.28)),
)
FOCAL = (1266.0, 1260.0, 1272.0, 809.0, 1256.0, 1259.0)
PRINCIPAL = (
    *((816.0, 491.0), (807.0, 495.0), (826.0, 479.0)),
    *((829.0, 481.0), (792.0, 492.0), (807.0, 501.0)),
)
IMAGE_CHANGES = ((0.10, 0, 26, False), (0.11, 9, 35, True))  # scale, left, top, mirrored
SPACE_CHANGES = ((0.0, 1.0), (0.2, 1.03))  # rotation, scale
EGO_MOTIONS = ((6.0, 0.03, 1.2), (2.5, -0.02, 0.55))  # metres a second, radians, seconds


def make_state_dict(spec):
    """The official model's weights; a wrong rule would not give the recorded checksum."""
    digest, state = hashlib.sha256(), {}
    left_out, aliases = set(spec["left_as_model"]), spec["aliases"]
    for key, shape in spec["state_dict"]:
        if key in left_out:
            continue
        source = aliases.get(key, key)
        values = state[source].numpy() if source in state else make_array(spec, source, shape)
        digest.update(key.encode() + b"\0" + np.ascontiguousarray(values, "<f4").tobytes())
        state[key] = torch.from_numpy(values)
    assert digest.hexdigest() == spec["weights_sha256"]
    return state


def make_array(spec, key, shape):
    rng = np.random.default_rng([spec["seed"], zlib.crc32(key.encode())])
    normal = rng.standard_normal(shape).astype(np.float32)
    words = next((w for p, w in spec["overrides"].items() if re.search(p, key)), "scale 1").split()
    numbers = [np.float32(x) for x in words[1:]]
    if words[0] == "list":
        return np.array(numbers, np.float32).reshape(shape)
    if words[0] == "affine":
        return numbers[0] + numbers[1] * normal
    return default_values(key, shape, normal) * numbers[0]


def default_values(key, shape, normal):
    if len(shape) > 1:
        gain = 2.0 if len(shape) == 4 else 1.0
        return normal * np.float32(math.sqrt(gain / math.prod(shape[1:])))
    tenth = np.float32(0.1)
    if key.endswith("running_var"):
        return np.float32(1) + tenth * np.abs(normal)
    if key.endswith("weight"):
        return np.float32(1) + tenth * normal
    return tenth * normal


def make_images(spec):
    """Images (2, V, 3, H, W) uint8, B G R."""
    images = np.empty((2, spec["num_views"], H, W, 3), np.uint8)
    for b in range(2):
        for v in range(spec["num_views"]):
            rng = np.random.default_rng([spec["seed"], 1000 + 100 * b + v])
            coarse = rng.integers(0, 192, (H // 8, W // 8, 3))
            fine = rng.integers(0, 64, (H, W, 3))
            images[b, v] = (coarse.repeat(8, 0).repeat(8, 1) + fine).astype(np.uint8)
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).contiguous()


def about_axis(vector):
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)


def about_z(angle):
    made = np.eye(4)
    made[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return made


def make_lidar2img(spec):
    """Matrices (2, V, 4, 4): six cameras, of petrv2 then the same at an earlier time."""
    made = np.empty((2, spec["num_views"], 4, 4))
    for b in range(2):
        rng = np.random.default_rng([spec["seed"], 3000 + b])
        scale, left, top, mirrored = IMAGE_CHANGES[b]
        angle, grown = SPACE_CHANGES[b]
        space = np.linalg.inv(about_z(angle)) @ np.diag([1 / grown] * 3 + [1.0])
        speed, turn, seconds = EGO_MOTIONS[b]
        earlier = about_z(turn)
        earlier[1, 3] = speed * seconds
        image = np.eye(4)
        image[0, 0], image[1, 1], image[0, 2], image[1, 2] = scale, scale, -left, -top
        if mirrored:
            image[0, 0], image[0, 2] = -scale, left + W
        for v in range(6):
            camera = make_camera(v, rng)
            made[b, v] = image @ camera @ space
            if spec["num_views"] == 12:
                made[b, v + 6] = image @ camera @ earlier @ space
    return made


def make_camera(v, rng):
    turned, moved, zoomed = rng.normal(0, 0.01, 3), rng.normal(0, 0.03, 3), rng.normal(0, 0.01)
    direction = math.radians(VIEW_DIRECTIONS[v])
    dx, dy = math.cos(direction), math.sin(direction)
    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = about_axis(turned) @ np.array([[dy, -dx, 0], [0, 0, -1.0], [dx, dy, 0]])
    lidar2cam[:3, 3] = -lidar2cam[:3, :3] @ (np.array(CAMERA_POSITIONS[v]) + moved)
    intrinsic = np.eye(4)
    intrinsic[0, 0] = intrinsic[1, 1] = FOCAL[v] * (1 + zoomed)
    intrinsic[:2, 2] = PRINCIPAL[v]
    return intrinsic @ lidar2cam


def make_intervals(spec):
    """Seconds between the two frames of each sample."""
    made = []
    for b in range(2):
        rng = np.random.default_rng([spec["seed"], 4000 + b])
        current = rng.uniform(-0.05, 0.05, 6)
        earlier = current + EGO_MOTIONS[b][2] + rng.uniform(-0.03, 0.03, 6)
        made.append(float(np.mean(earlier - current)))
    return made


def make_instances(spec, b, count):
    """Targets; the recorded yaw is that of old mmdet3d, ours is the usual one."""
    number = (7, 4)[b]
    rng = np.random.default_rng([spec.get("target_seed", spec["seed"]), 2000 + b])
    xy, z = rng.uniform(-45, 45, (number, 2)), rng.uniform(-2, 1, (number, 1))
    size = np.exp(rng.normal(np.log([1.9, 4.5, 1.7]), 0.3, (number, 3)))
    yaw = rng.uniform(-math.pi, math.pi, (number, 1))
    velocity, labels = rng.normal(0, 3, (number, 2)), rng.integers(0, 10, number)
    boxes = np.concatenate([xy, z, size, yaw, velocity], 1).astype(np.float32)
    boxes[:, 6] = -boxes[:, 6] - np.float32(math.pi / 2)
    return Instances(
        (H, W),
        gt_boxes3d=torch.from_numpy(boxes[:count]),
        gt_classes=torch.from_numpy(labels[:count]),
    )


def make_batch(spec, counts=(7, 4)):
    """The recorded samples as a model's input; targets beyond `counts` are left out."""
    images, matrices = make_images(spec), torch.from_numpy(make_lidar2img(spec))
    batch = [
        {
            "image": images[b],
            "lidar2img": matrices[b],
            "sample_token": f"sample {b}",
            "instances": make_instances(spec, b, counts[b]),
        }
        for b in range(2)
    ]
    if spec["num_views"] == 12:
        for x, seconds in zip(batch, make_intervals(spec), strict=True):
            x["interval"] = seconds
    return batch
