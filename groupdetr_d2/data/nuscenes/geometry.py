"""Rotations and rigid motions of nuScenes, in NumPy and float64.

A box is nine numbers, ``x y z w l h yaw vx vy``: the centre in metres, width, length and height,
the angle in radians from the x axis to the heading, counter-clockwise about z, and the velocity in
metres per second. A motion is a matrix (4, 4) that maps column vectors.
"""

import numpy as np
from scipy.spatial.transform import Rotation

BOX_SIZE = 9  # numbers of a box
YAW = 6  # the place of the angle


def rotation_of(quaternions: np.ndarray) -> np.ndarray:
    """Computes rotation matrices (..., 3, 3) of quaternions (..., 4), w first."""
    q = np.asarray(quaternions, dtype=np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the quaternions (..., 4) of the rotation by `b` and then by `a`."""
    w1, x1, y1, z1 = np.moveaxis(np.asarray(a, dtype=np.float64), -1, 0)
    w2, x2, y2, z2 = np.moveaxis(np.asarray(b, dtype=np.float64), -1, 0)
    parts = (
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
    )
    return np.stack(parts, -1)


def quaternion_of(rotations: np.ndarray) -> np.ndarray:
    """Computes quaternions (..., 4), w first, of rotation matrices (..., 3, 3)."""
    rotations = np.asarray(rotations, dtype=np.float64)
    xyzw = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat()
    return np.roll(xyzw, 1, axis=-1).reshape(*rotations.shape[:-2], 4)


def quaternion_of_yaw(yaw: np.ndarray) -> np.ndarray:
    """Computes the quaternions (..., 4) of rotations about z by angles (...) in radians."""
    half = np.asarray(yaw, dtype=np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], -1)


def motion(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Makes motions (..., 4, 4) of rotations (..., 3, 3) and translations (..., 3) in metres."""
    rotation, translation = np.asarray(rotation), np.asarray(translation)
    made = np.zeros((*rotation.shape[:-2], 4, 4))
    made[..., :3, :3], made[..., :3, 3], made[..., 3, 3] = rotation, translation, 1
    return made


def inverse(motions: np.ndarray) -> np.ndarray:
    """Computes the inverse of motions (..., 4, 4), exact to rounding."""
    turned = np.swapaxes(motions[..., :3, :3], -1, -2)
    return motion(turned, -(turned @ motions[..., :3, 3:])[..., 0])


def moved_points(points: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Moves points (T, 3) by a motion (4, 4)."""
    return points @ moves[:3, :3].T + moves[:3, 3]


def moved_boxes(boxes: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Moves boxes (T, 9) by a motion (4, 4); headings and velocities turn with them."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, BOX_SIZE)
    made, flat = boxes.copy(), np.zeros(len(boxes))
    heading = np.stack([np.cos(boxes[:, YAW]), np.sin(boxes[:, YAW]), flat], 1) @ moves[:3, :3].T
    velocity = np.concatenate([boxes[:, 7:9], flat[:, None]], 1) @ moves[:3, :3].T
    made[:, :3] = moved_points(boxes[:, :3], moves)
    made[:, YAW] = np.arctan2(heading[:, 1], heading[:, 0])
    made[:, 7:9] = velocity[:, :2]
    return made


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Computes the corners (T, 8, 3) of boxes (T, 9).

    The first four are the front face, the last four the back one, each from the upper left corner
    around, as one sees it from behind the object: up left, up right, down right, down left.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, BOX_SIZE)
    x = np.array([1, 1, 1, 1, -1, -1, -1, -1]) * boxes[:, 4:5] / 2
    y = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * boxes[:, 3:4] / 2
    z = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * boxes[:, 5:6] / 2
    cos, sin = np.cos(boxes[:, YAW, None]), np.sin(boxes[:, YAW, None])
    return np.stack([x * cos - y * sin, x * sin + y * cos, z], -1) + boxes[:, None, :3]


def projected(points: np.ndarray, lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects points (..., 3); returns pixels (..., 2) and depths (...) in metres.

    Pixels of points that are not in front of the camera mean nothing.
    """
    homogeneous = points @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = homogeneous[..., 2]
    safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
    return homogeneous[..., :2] / safe[..., None], depth
