"""The keyframes of a split as dataset dicts, each made when it is asked for."""

import functools
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from .geometry import BOX_SIZE, inverse
from .index_file import FrameIndex, motions_of
from .names import CAMERAS, CLASSES
from .tables import NuScenesError

EARLIER_KEYFRAMES = 5  # as in the files of the official PETRv2
SWEEPS = 5  # images of a camera between two keyframes
SECOND = 1e6  # microseconds


class NuScenesFrames(Sequence):
    """Dataset dicts of the keyframes of a split.

    A dict has the six `views` of the cameras, each with its matrix `lidar2img` (4, 4) from the
    lidar frame of the keyframe into pixels, the `annotations` in that frame, and `earlier`, the
    views of earlier times. See :class:`FrameIndex` for units.

    Args:
        root: the folder that file names start from.
        chosen: which keyframes, in their order; all if not given.
    """

    class_names = list(CLASSES)

    def __init__(
        self, index: FrameIndex, root: str, chosen: Sequence[int] | np.ndarray | None = None
    ):
        self.arrays, self.root = index, str(root)
        number = len(index.key_time)
        self.chosen = np.arange(number) if chosen is None else np.asarray(chosen, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place):
        """Returns one dict, or some of the frames for a slice."""
        if isinstance(place, slice):
            return NuScenesFrames(self.arrays, self.root, self.chosen[place])
        index, key = self.arrays, int(self.chosen[place])
        token = index.key_tokens[key]
        views = views_of(index, self.root, key, index.key_images[key])
        front = {name: views[0][name] for name in ("file_name", "width", "height")}
        return {
            "image_id": token,
            "sample_token": token,
            "scene": index.scene_names[int(index.key_scene[key])],
            **front,
            "timestamp": int(index.key_time[key]),
            "lidar2ego": motions_of(index.key_lidar2ego[key]),
            "ego2global": motions_of(index.key_ego2global[key]),
            "views": views,
            "earlier": EarlierFrames(index, self.root, key),
            "annotations": annotations_of(index, key),
        }

    @property
    def counts(self) -> np.ndarray:
        """The objects of each frame, (N,)."""
        return (self.arrays.box_ends.astype(np.int64) - self.arrays.box_starts)[self.chosen]

    @property
    def sizes(self) -> np.ndarray:
        """The width and height of each front image, (N, 2)."""
        return self.arrays.image_size[self.arrays.key_images[self.chosen, 0]]

    @property
    def tokens(self) -> list[str]:
        """The tokens of the samples."""
        return [self.arrays.key_tokens[int(key)] for key in self.chosen]

    @property
    def scenes(self) -> list[str]:
        """The names of the scenes that the frames are of, in the order of their first frames."""
        rows = dict.fromkeys(self.arrays.key_scene[self.chosen].tolist())
        return [self.arrays.scene_names[row] for row in rows]

    @property
    def fingerprint(self) -> str:
        """A hex digest of the content."""
        if np.array_equal(self.chosen, np.arange(len(self.arrays.key_time))):
            return self.arrays.fingerprint
        digest = hashlib.sha256(self.arrays.fingerprint.encode())
        digest.update(self.chosen.astype(np.int64).data)
        return digest.hexdigest()

    def with_objects(self) -> "NuScenesFrames":
        """Returns the frames that have an object."""
        return NuScenesFrames(self.arrays, self.root, self.chosen[self.counts > 0])

    def position_of(self, token: str) -> int:
        """Returns the place of the frame with a sample token.

        Raises:
            NuScenesError: there is none.
        """
        if token not in self._positions:
            raise NuScenesError(
                f"no keyframe of the {len(self)} of this split has the token {token!r}"
            )
        return self._positions[token]

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}


class EarlierFrames(Sequence):
    """The views of the cameras before a keyframe, latest first, made when they are asked for.

    As in the official PETRv2: five images before each keyframe, then the keyframe before it, five
    times over. Where a camera has no image left before that keyframe's, the entry before is
    repeated. It is empty at the start of a scene. Matrices are from the lidar frame of the current
    keyframe, and times relative to it.
    """

    def __init__(self, index: FrameIndex, root: str, key: int):
        self.arrays, self.root, self.key = index, root, key

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        """Returns the six views of one time, or a list of such for a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return views_of(self.arrays, self.root, self.key, self.rows[place])

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows of the images in the index, (up to 30, 6)."""
        index, key = self.arrays, self.key
        first = index.first_image[index.key_scene[key]]
        rows: list[np.ndarray] = []
        for _ in range(EARLIER_KEYFRAMES):
            images, previous = index.key_images[key], int(index.key_previous[key])
            if previous < 0:
                break
            for back in range(1, SWEEPS + 1):
                if (images - back >= first).all():
                    rows.append(images - back)
                elif rows:
                    rows.append(rows[-1])
            rows.append(index.key_images[previous])
            key = previous
        return np.array(rows, dtype=np.int64).reshape(-1, len(CAMERAS))


def views_of(index: FrameIndex, root: str, key: int, rows: np.ndarray) -> list[dict]:
    """Makes six views of images, seen from the lidar frame of a keyframe.

    Args:
        rows: the rows of the images in the index, (6,), in the order of names.CAMERAS.
    """
    ego2global, lidar2ego = motions_of(
        np.stack([index.key_ego2global[key], index.key_lidar2ego[key]])
    )
    global2ego = inverse(motions_of(index.image_pose[rows]))
    lidar2img = index.ego2img[index.image_calibration[rows]] @ (global2ego @ ego2global @ lidar2ego)
    seconds = (int(index.key_time[key]) - index.image_time[rows]) / SECOND
    sizes = index.image_size[rows].tolist()
    return [
        {
            "camera": camera,
            "file_name": os.path.join(root, index.image_names[int(row)]),
            "width": sizes[i][0],
            "height": sizes[i][1],
            "lidar2img": lidar2img[i],
            "seconds": float(seconds[i]),
        }
        for i, (camera, row) in enumerate(zip(CAMERAS, rows, strict=True))
    ]


def annotations_of(index: FrameIndex, key: int) -> list[dict]:
    """Makes the annotations of a keyframe, in the order of the tables."""
    part = slice(int(index.box_starts[key]), int(index.box_ends[key]))
    rows = zip(
        index.boxes[part].reshape(-1, BOX_SIZE).tolist(),
        index.box_class[part].tolist(),
        index.box_points[part].tolist(),
        index.box_tokens[part],
        strict=True,
    )
    return [
        {"box": box, "category_id": category, "num_points": points, "token": token}
        for box, category, points, token in rows
    ]
