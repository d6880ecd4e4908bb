"""Pictures of cuboids on a textured ground under a sky, by ray casting with a depth buffer.

Every pixel casts a ray through its centre, which is at (u, v) for row v and column u. A cuboid
shows its heading: it has a pale pane on its front and one towards the front of each side, the
lower part of its back is dark, and its sides are lighter towards the front. The lamps of those
that move are lit.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import YAW, corners_of, inverse, motion
from .names import CLASSES

NEAR = 0.1  # metres; nearer surfaces are not seen
TEXTURE_SIZE = 256  # a power of two
TEXELS = 3.0  # in a metre of ground
HAZE = 90.0  # metres in which two thirds of the contrast are lost
LAMPS = np.array([120.0, 240.0, 255.0], dtype=np.float32)  # BGR
# classes around the circle of hues; neighbours differ much in size
_BY_HUE = (
    *("car", "traffic_cone", "bus", "pedestrian", "trailer"),
    *("bicycle", "construction_vehicle", "barrier", "truck", "motorcycle"),
)


@dataclass(frozen=True)
class Scenery:
    """The looks of a scene.

    Attributes:
        colours: colours (T, 3) of objects, BGR in 0..255.
        sun: the direction (3,) to the sun in the global frame, of length 1.
        texture: the ground (256, 256, 3) in levels of 255, repeated.
        sky: colours (3,) at the horizon.
        noise: noise (2H, 2W, 3) from which every picture takes a part.
    """

    colours: np.ndarray
    sun: np.ndarray
    texture: np.ndarray
    sky: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Rendering:
    """A picture and what is seen in it.

    Attributes:
        picture: (H, W, 3) uint8, BGR.
        owner: the object (H, W) that is seen at a pixel, -1 where there is none.
        covered: pixels (T,) of the picture that each object would fill without the others.
    """

    picture: np.ndarray
    owner: np.ndarray
    covered: np.ndarray

    @property
    def visible(self) -> np.ndarray:
        """The pixels (T,) at which each object is seen."""
        return np.bincount(self.owner[self.owner >= 0], minlength=len(self.covered))


def hue_of(name: str) -> float:
    """The typical hue of a class in degrees."""
    return _BY_HUE.index(name) * 360 / len(_BY_HUE)


def random_scenery(
    rng: np.random.Generator,
    classes: np.ndarray,
    size: tuple[int, int],
    hue_noise: float,
    pixel_noise: float,
) -> Scenery:
    """Draws the looks of a scene with objects of some classes (T,), for pictures (H, W)."""
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.4, 0.8)
    flat = np.sqrt(1 - height**2)
    coarse = rng.uniform(70, 150, (32, 32, 1)) + rng.uniform(-8, 8, 3)
    texture = cv2.resize(
        coarse.astype(np.float32), (TEXTURE_SIZE, TEXTURE_SIZE), interpolation=cv2.INTER_NEAREST
    )
    texture = texture + rng.normal(0, 10, texture.shape)
    sky = rng.uniform(150, 210) + np.array([25.0, 5.0, -10.0])
    return Scenery(
        colours=_random_colours(rng, classes, hue_noise),
        sun=np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height]),
        texture=texture.astype(np.float32),
        sky=sky.astype(np.float32),
        noise=rng.normal(0, pixel_noise, (2 * size[0], 2 * size[1], 3)).astype(np.float32),
    )


def _random_colours(rng: np.random.Generator, classes: np.ndarray, hue_noise: float) -> np.ndarray:
    hues = np.array([hue_of(CLASSES[i]) for i in classes]) + rng.normal(0, hue_noise, len(classes))
    saturation, value = rng.uniform(0.55, 1.0, len(classes)), rng.uniform(0.6, 1.0, len(classes))
    hsv = np.stack([hues % 360, saturation, value], -1).astype(np.float32)
    return 255 * cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0] if len(classes) else hsv


def render(
    camera_to_global: np.ndarray,
    intrinsic: np.ndarray,
    boxes: np.ndarray,
    is_lit: np.ndarray,
    scenery: Scenery,
    rng: np.random.Generator,
) -> Rendering:
    """Draws what a camera sees.

    Args:
        camera_to_global: the camera's place, a motion (4, 4).
        intrinsic: the camera's intrinsics (3, 3).
        boxes: objects (T, 9) in the global frame.
        is_lit: whether the lamps of objects are lit, (T,) bool.
        scenery: the looks, for the objects in the same order.
        rng: where the noise of the picture comes from.
    """
    height, width = (side // 2 for side in scenery.noise.shape[:2])
    rays = _rays(intrinsic, height, width)
    picture, depth = _background(rays, camera_to_global, scenery)
    owner = np.full((height, width), -1, dtype=np.int16)
    covered = np.zeros(len(boxes), dtype=np.int64)
    regions = _regions(boxes, camera_to_global, intrinsic, height, width)
    distance = np.linalg.norm(boxes[:, :3] - camera_to_global[:3, 3], axis=1)
    for i in np.argsort(distance):  # so that little is painted in vain
        region = regions[i]
        if region is not None:
            cuboid = _Cuboid(boxes[i], scenery.colours[i], bool(is_lit[i]), scenery.sun)
            hit = cuboid.hit(rays[:, region[0], region[1]], camera_to_global)
            covered[i] = len(hit.depth)
            cuboid.paint(hit, picture[region], depth[region], owner[region], i)
    haze = np.exp(depth * np.float32(-1 / HAZE))[..., None]
    y, x = int(rng.integers(height)), int(rng.integers(width))
    picture = scenery.sky + (picture - scenery.sky) * haze
    picture += scenery.noise[y : y + height, x : x + width]
    return Rendering(np.clip(picture, 0, 255).astype(np.uint8), owner, covered)


def _rays(intrinsic: np.ndarray, height: int, width: int) -> np.ndarray:
    """Computes directions (3, H, W) in the camera's frame, of depth 1."""
    rows, columns = np.mgrid[:height, :width]
    x = (columns - intrinsic[0, 2]) / intrinsic[0, 0]
    y = (rows - intrinsic[1, 2]) / intrinsic[1, 1]
    return np.stack([x, y, np.ones_like(x)]).astype(np.float32)


def _background(
    rays: np.ndarray, camera_to_global: np.ndarray, scenery: Scenery
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ground and sky (H, W, 3); returns them and the depth (H, W), 0 for the sky."""
    x, y, z = _turned(rays, camera_to_global)
    place = camera_to_global[:3, 3]
    is_sky = z > -1e-3
    depth = np.float32(-place[2]) / np.minimum(z, np.float32(-1e-3))
    scaled, (x0, y0) = depth * np.float32(TEXELS), place[:2] * TEXELS % TEXTURE_SIZE
    column = (x * scaled + np.float32(x0)).astype(np.int32) & (TEXTURE_SIZE - 1)
    row = (y * scaled + np.float32(y0)).astype(np.int32) & (TEXTURE_SIZE - 1)
    picture = scenery.texture.reshape(-1, 3).take(row * TEXTURE_SIZE + column, axis=0)
    rising = np.clip(z[is_sky], 0, 1)[:, None] * np.array([-20, -90, -150], dtype=np.float32)
    picture[is_sky] = scenery.sky + rising
    depth[is_sky] = 0  # no haze
    return picture, depth


def _turned(rays: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Turns directions (3, h, w) by the rotation of a motion (4, 4)."""
    turned = move[:3, :3].astype(np.float32) @ rays.reshape(3, -1)
    return turned.reshape(rays.shape)  # (3, h, w)


def _regions(
    boxes: np.ndarray,
    camera_to_global: np.ndarray,
    intrinsic: np.ndarray,
    height: int,
    width: int,
) -> list[tuple[slice, slice] | None]:
    """Lists the part of the picture that holds an object, None where it is out of sight."""
    to_camera = inverse(camera_to_global)
    corners = corners_of(boxes) @ to_camera[:3, :3].T + to_camera[:3, 3]  # (T, 8, 3)
    depth = corners[..., 2]
    pixels = corners @ intrinsic.T
    pixels = pixels[..., :2] / np.maximum(depth, NEAR)[..., None]
    low, high = np.floor(pixels.min(1)).astype(int), np.ceil(pixels.max(1)).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, [width, height])
    regions: list[tuple[slice, slice] | None] = []
    for (x0, y0), (x1, y1), depths in zip(low, high, depth, strict=True):
        if depths.max() < NEAR:
            regions.append(None)
        elif depths.min() < NEAR:  # reaches behind the camera, where corners project nowhere
            regions.append((slice(0, height), slice(0, width)))
        else:
            regions.append((slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None)
    return regions


@dataclass(frozen=True)
class _Hit:
    """The pixels where rays meet a cuboid.

    Attributes:
        places: rows and columns (2, P).
        depth: depth (P,) in metres.
        axis: the axis (P,) across the face that is met.
        points: where (3, P) in the cuboid's own frame, in -1..1.
    """

    places: np.ndarray
    depth: np.ndarray
    axis: np.ndarray
    points: np.ndarray


class _Cuboid:
    """One object: meets rays and paints itself."""

    def __init__(self, box: np.ndarray, colour: np.ndarray, is_lit: bool, sun: np.ndarray):
        cos, sin = np.cos(box[YAW]), np.sin(box[YAW])
        rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        self.from_global = inverse(motion(rotation, box[:3]))
        self.half = (box[[4, 3, 5]] / 2).astype(np.float32)  # along x, y, z of its own frame
        self.colour = colour.astype(np.float32)
        self.is_lit = is_lit
        facing = rotation.T @ sun
        shade = 0.55 + 0.45 * np.clip(np.stack([-facing, facing]), 0, 1)
        self.shade = shade.astype(np.float32)  # of the faces (2 sides, 3 axes)

    def hit(self, rays: np.ndarray, camera_to_global: np.ndarray) -> _Hit:
        """Meets rays (3, h, w) of a camera."""
        to_own = self.from_global @ camera_to_global
        origin = to_own[:3, 3].astype(np.float32)[:, None, None]
        half = self.half[:, None, None]
        directions = _turned(rays, to_own)
        directions[np.abs(directions) < 1e-6] = 1e-6
        at_zero, extent = -origin / directions, half / np.abs(directions)
        enters = at_zero - extent  # the depth at which a ray passes each pair of faces
        enter, leave = enters.max(0), (at_zero + extent).min(0)
        rows, columns = np.nonzero((enter < leave) & (enter > NEAR))
        depth = enter[rows, columns]
        points = (origin[:, :, 0] + depth * directions[:, rows, columns]) / half[:, :, 0]
        return _Hit(np.stack([rows, columns]), depth, enters[:, rows, columns].argmax(0), points)

    def paint(
        self, hit: _Hit, picture: np.ndarray, depth: np.ndarray, owner: np.ndarray, number: int
    ) -> None:
        """Paints itself where nothing nearer is, into parts of a picture, depths and owners."""
        rows, columns = hit.places
        is_seen = (owner[rows, columns] < 0) | (hit.depth < depth[rows, columns])
        rows, columns = rows[is_seen], columns[is_seen]
        picture[rows, columns] = self._colours(hit.axis[is_seen], hit.points[:, is_seen])
        depth[rows, columns] = hit.depth[is_seen]
        owner[rows, columns] = number

    def _colours(self, axis: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Computes the colours (P, 3) of points (3, P) on the faces across some axes (P,)."""
        side = np.take_along_axis(points, axis[None], 0)[0] > 0
        x, y, z = points
        brightness = self.shade[side.astype(int), axis] * (1 + np.float32(0.25) * x * (axis > 0))
        colours = self.colour * brightness[:, None]
        is_front, is_back = (axis == 0) & side, (axis == 0) & ~side
        pane = is_front & (np.abs(y) < 0.8) | (axis == 1) & (x > 0.4) & (x < 0.85)
        pane &= z > 0.2
        colours[pane] = 0.25 * colours[pane] + 0.75 * 235 * brightness[pane, None]
        colours[is_back & (z < -0.2)] *= 0.3
        if self.is_lit:
            colours[is_front & (z < -0.2) & (np.abs(y) > 0.4)] = LAMPS
        return colours
