"""Pictures of 3D boxes: in photographs, and of a whole keyframe beside its bird's-eye view."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..data.nuscenes.geometry import corners_of
from .bird_eye import WHITE, draw_bird_eye
from .colours import Colour
from .drawing import letter_size
from .drawn_boxes import DrawnBoxes
from .labels import Label, draw_labels

NEAR = 0.1  # metres before the camera; what is nearer is cut off
# the places of corners that geometry.corners_of makes: front (the first four), back, and between
EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
CROSS = ((0, 2), (1, 3))  # marks the front
FAR = 2.0**30  # pixels; OpenCV counts no farther
BESIDE = 8000.0  # pixels from the image's corner to which polygons reach at most
# of points p as (u * depth, v * depth, depth), those count that have p . (a, b, c) >= d
PLANES = np.array(
    [[0, 0, 1, NEAR], [1, 0, BESIDE, 0], [-1, 0, BESIDE, 0], [0, 1, BESIDE, 0], [0, -1, BESIDE, 0]]
)
FRONT_ROW = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
BACK_ROW = ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LABELLED_HEIGHT = 6  # pixels; smaller boxes have no name
TITLE_COLOUR = (40, 40, 40)
GAP = 4  # pixels between the parts of a picture
Segment = tuple[tuple[int, int], tuple[int, int]]


def draw_boxes3d(
    image: np.ndarray,
    lidar2img: np.ndarray,
    truth: DrawnBoxes | None,
    found: DrawnBoxes | None,
    names: Sequence[str],
    title: str = "",
) -> np.ndarray:
    """Draws boxes on a copy of a photograph (H, W, 3) BGR.

    Detections have the colours of their classes and a tinted front, true objects a cross on their
    front. True objects are white where detections are drawn, too. The nearest boxes are drawn last,
    and have their names first.

    Args:
        lidar2img: (4, 4) to the pixels of this very image.
        title: is written in the lower left corner, where no name comes.
    """
    image = image.copy()
    labels: list[tuple[np.ndarray, str, Colour]] = []
    if truth is not None and found is not None:
        _draw_set(image, lidar2img, truth, [WHITE] * len(truth))
    elif truth is not None:
        labels += _draw_set(image, lidar2img, truth, truth.colours(), names)
    if found is not None:
        labels += _draw_set(image, lidar2img, found, found.colours(), names)
    _draw_labels(image, labels, title)
    return image


def draw_frame(
    views: Sequence[dict],
    pictures: Sequence[np.ndarray],
    truth: DrawnBoxes | None,
    found: DrawnBoxes | None,
    names: Sequence[str],
    *,
    height: int = 360,
) -> np.ndarray:
    """Draws a keyframe: three photographs ahead over three behind, and the bird's-eye view beside.

    Args:
        views: each with "camera", "width", "height" and "lidar2img" (4, 4), as datasets have them.
        pictures: the photographs (H, W, 3) BGR in the order of the views, of any size; a photograph
            of another size than its view says is taken for the whole view, resized.
        truth: the true boxes; None if they are unknown.
        found: the detections; None if there are none to compare with the truth.
        names: of the classes.
        height: of a photograph, in pixels of the result.

    Returns:
        An image (about 2 height, W, 3) BGR.
    """
    pictures = list(pictures)  # read once
    by_camera = {view["camera"]: (view, p) for view, p in zip(views, pictures, strict=True)}
    shape = max((p.shape[1] / p.shape[0] for p in pictures), default=16 / 9)
    width = round(height * shape)
    rows = []
    for cameras in (FRONT_ROW, BACK_ROW):
        cells = []
        for camera in cameras:
            cell = np.zeros((height, width, 3), dtype=np.uint8)
            if camera in by_camera:
                drawn = _draw_view(*by_camera[camera], (height, width), truth, found, names)
                cell[: drawn.shape[0], : drawn.shape[1]] = drawn
            cells.append(cell)
        rows.append(_joined(cells, axis=1))
    photographs = _joined(rows, axis=0)
    above = draw_bird_eye(truth, found, names, len(photographs))
    return _joined([photographs, above], axis=1)


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Joins pictures along an axis with a gap between them."""
    shape = [*parts[0].shape]
    shape[axis] = GAP
    gap = np.full(shape, 90, dtype=np.uint8)
    spaced = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(spaced, axis)


def _draw_view(
    view: dict,
    picture: np.ndarray,
    room: tuple[int, int],
    truth: DrawnBoxes | None,
    found: DrawnBoxes | None,
    names: Sequence[str],
) -> np.ndarray:
    """Scales a photograph into a room (height, width) and draws on it at that scale."""
    scale = min(room[0] / picture.shape[0], room[1] / picture.shape[1])
    height, width = (max(1, round(n * scale)) for n in picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(picture, (width, height), interpolation=how)
    lidar2img = scaled(view["lidar2img"], width / view["width"], height / view["height"])
    title = view["camera"].removeprefix("CAM_").replace("_", " ").lower()
    return draw_boxes3d(resized, lidar2img, truth, found, names, title)


def scaled(lidar2img: np.ndarray, across: float, down: float) -> np.ndarray:
    """Computes the projection (4, 4) to an image that was resized by these factors."""
    return np.diag([across, down, 1.0, 1.0]) @ np.asarray(lidar2img, dtype=np.float64)


def _draw_set(
    image: np.ndarray,
    lidar2img: np.ndarray,
    drawn: DrawnBoxes,
    colours: Sequence[Colour],
    names: Sequence[str] | None = None,
) -> list[tuple[np.ndarray, str, Colour]]:
    """Draws true or found boxes, far ones first; a front is crossed or tinted.

    Returns:
        corners, name and colour of the boxes that are seen, near ones first; nothing without names.
    """
    corners = projected_corners(drawn.boxes, lidar2img)
    seen = [i for i in _by_depth(corners) if _segments(corners[i], EDGES, image.shape)]
    is_found = drawn.scores is not None
    if is_found:
        tinted = image.copy()
        for i in seen:
            front = cut_polygon(corners[i][:4])
            if len(front):
                places = np.round(front - 0.5).astype(np.int32)
                cv2.fillPoly(tinted, [places], colours[i], cv2.LINE_AA)
        cv2.addWeighted(tinted, 0.4, image, 0.6, 0, dst=image)
    edges = EDGES if is_found else (*EDGES, *CROSS)
    thickness = max(1, round(min(image.shape[:2]) / 500))
    for i in seen:
        for start, end in _segments(corners[i], edges, image.shape):
            cv2.line(image, start, end, colours[i], thickness, cv2.LINE_AA)
    labels = [] if names is None else drawn.labels(names)
    return [(corners[i], labels[i], colours[i]) for i in reversed(seen) if labels]


def projected_corners(boxes: np.ndarray, lidar2img: np.ndarray) -> np.ndarray:
    """Computes the corners (n, 8, 3) of boxes as u * depth, v * depth, depth; a line stays one."""
    corners = corners_of(boxes)
    return corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]


def _by_depth(corners: np.ndarray) -> np.ndarray:
    """Sorts boxes, far ones first."""
    return np.argsort(-corners[..., 2].mean(1), kind="stable")


def cut_line(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Cuts a line between two points u * depth, v * depth, depth at the near plane.

    Returns:
        The pixels (2,) of both ends of the part in front of the camera; None if there is none.
    """
    ends = np.stack([start, end])
    depths = ends[:, 2]
    if (depths < NEAR).all():
        return None
    if (depths < NEAR).any():
        share = (NEAR - depths[0]) / (depths[1] - depths[0])
        ends[int(depths.argmin())] = start + share * (end - start)
    u, v = ends[:, :2] / ends[:, 2:]
    return u, v


def _segments(
    corners: np.ndarray, edges: Sequence[tuple[int, int]], shape: Sequence[int]
) -> list[Segment]:
    """Finds the parts of edges that are in an image, in whole pixels, of corners (8, 3)."""
    found = []
    for first, last in edges:
        line = cut_line(corners[first], corners[last])
        if line is not None:
            # a pixel is named by its upper left corner, OpenCV counts from its middle
            places = np.round(np.clip(np.stack(line), -FAR, FAR) - 0.5).astype(int).tolist()
            inside, start, end = cv2.clipLine((0, 0, shape[1], shape[0]), *places)
            if inside:
                found.append(((start[0], start[1]), (end[0], end[1])))
    return found


def cut_polygon(points: np.ndarray) -> np.ndarray:
    """Cuts a convex polygon (n, 3) of u * depth, v * depth, depth to what OpenCV can fill.

    Returns:
        The pixels (m, 2) of the part in front of the camera and not far beside the image.
    """
    for plane in PLANES:
        heights, kept = points @ plane[:3] - plane[3], []
        for i in range(len(points)):
            before, here = heights[i - 1], heights[i]
            if (before >= 0) != (here >= 0):
                share = before / (before - here)
                kept.append(points[i - 1] + share * (points[i] - points[i - 1]))
            if here >= 0:
                kept.append(points[i])
        points = np.array(kept).reshape(-1, 3)
    return points[:, :2] / points[:, 2:]


def _draw_labels(
    image: np.ndarray, labels: Sequence[tuple[np.ndarray, str, Colour]], title: str
) -> None:
    """Writes a title in the lower left, then names at boxes, where there is room."""
    height = image.shape[0]
    shown = [Label(title, (0, height, 0, height), TITLE_COLOUR)]
    for corners, text, colour in labels:
        extent = _extent(corners, image.shape)
        if extent is not None:
            shown.append(Label(text, extent, colour))
    draw_labels(image, shown, letter_size(image.shape))


def _extent(corners: np.ndarray, shape: Sequence[int]) -> tuple[float, float, float, float] | None:
    """Finds x0, y0, x1, y1 of a box in an image; None if it is too low for a name."""
    ends = np.array([end for segment in _segments(corners, EDGES, shape) for end in segment])
    (left, top), (right, bottom) = ends.min(0).tolist(), ends.max(0).tolist()
    return (left, top, right, bottom) if bottom - top >= LABELLED_HEIGHT else None
