"""The content of a COCO annotation file as arrays, which take a tenth of the memory of its records.

Images are in the order of their ids, classes too, and annotations in the order of their images.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from detectron2.structures import BoxMode

from .coco_rules import LARGEST, Finding, Id, Table, order_of, plain, repeated_values, shown
from .image_set import ImageSet
from .segmentations import PROBLEMS, Segmentations, segmentations_of

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of area, in pixels
SMALLEST = 1e-3  # side of a box, in pixels
FAR = 1.1  # relative to its image, how far a box reaches that is none
OUTSIDE = 1.0  # pixels that a box may reach over its image without being named
MASK_OFFSET, MASK_SHARE = 3.0, 0.1  # pixels, share of a side, by which a box may miss its mask


@dataclass(frozen=True)
class CocoColumns:
    """N images, C classes and M annotations."""

    image_ids: Sequence[Id]
    file_names: Sequence[str]
    sizes: np.ndarray  # (N, 2) int64, width and height
    category_ids: Sequence[Id]
    class_names: Sequence[str]
    annotation_ids: (
        Sequence[Id] | np.ndarray
    )  # an array where they are mapped: there may be millions
    image_of: np.ndarray  # (M,) int64, rising
    class_of: np.ndarray  # (M,) int64
    boxes: np.ndarray  # (M, 4) float64: x, y, width, height
    areas: np.ndarray  # (M,) float64
    crowd: np.ndarray  # (M,) bool
    segmentations: Segmentations | None = None  # where masks are read

    @cached_property
    def starts(self) -> np.ndarray:
        """The first annotation of each image, and their number, (N + 1,)."""
        return np.searchsorted(self.image_of, np.arange(len(self.image_ids) + 1))

    @cached_property
    def counts(self) -> np.ndarray:
        """The objects of each image without crowds, (N,)."""
        return np.bincount(self.image_of[~self.crowd], minlength=len(self.image_ids))

    @cached_property
    def fingerprint(self) -> str:
        """A text that changes with everything that a training reads, the order included."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.sizes, self.image_of, self.class_of, self.boxes, self.crowd):
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.segmentations is not None:
            masks = self.segmentations
            for array in (masks.text, masks.starts, masks.ends):
                digest.update(np.ascontiguousarray(array).tobytes())
        for texts in (self.file_names, self.class_names):
            digest.update("\0".join(texts).encode())
        return digest.hexdigest()

    def without(self, is_left_out: np.ndarray) -> "CocoColumns":
        """Returns the columns without some annotations, (M,) bool."""
        kept = ~is_left_out
        ids: Sequence[Id] | np.ndarray
        if isinstance(self.annotation_ids, np.ndarray):
            ids = self.annotation_ids[kept]
        else:
            ids = [x for x, is_kept in zip(self.annotation_ids, kept, strict=True) if is_kept]
        names = ("image_of", "class_of", "boxes", "areas", "crowd")
        masks = self.segmentations and self.segmentations.select(kept)
        own = {x: getattr(self, x)[kept] for x in names}
        return replace(self, annotation_ids=ids, segmentations=masks, **own)

    def place(self, annotation: int) -> str:
        """Names an annotation and its box for a message."""
        name = plain(self.file_names[self.image_of[annotation]])
        identity = self.annotation_ids[annotation]
        identity = identity.item() if isinstance(identity, np.integer) else identity
        box = [round(float(x), 3) for x in self.boxes[annotation]]
        return f"{name}, annotation {shown(identity)} {box}"


def columns_of(table: Table, masks: Sequence[bytes] | None = None) -> CocoColumns:
    """Makes the columns of a table whose ids are unique and known.

    Args:
        masks: the JSON of each annotation's mask, where masks are read.
    """
    image_ids, category_ids = (table.column(key, "id") for key in ("images", "categories"))
    images = sorted(range(len(image_ids)), key=lambda i: order_of(image_ids[i]))
    classes = sorted(range(len(category_ids)), key=lambda i: order_of(category_ids[i]))
    image_places = {image_ids[i]: place for place, i in enumerate(images)}
    class_places = {category_ids[i]: place for place, i in enumerate(classes)}
    own = table.columns["annotations"]
    image_of = np.array([image_places[x] for x in own["image_id"]], dtype=np.int64)
    class_of = np.array([class_places[x] for x in own["category_id"]], dtype=np.int64)
    order = np.argsort(image_of, kind="stable")
    names, widths, heights = (table.column("images", x) for x in ("file_name", "width", "height"))
    sizes = np.array([widths, heights], dtype=np.int64).T.reshape(-1, 2)
    sizes = sizes[images] if images else sizes
    ids = own["id"]
    return CocoColumns(
        image_ids=[image_ids[i] for i in images],
        file_names=[names[i] for i in images],
        sizes=sizes,
        category_ids=[category_ids[i] for i in classes],
        class_names=[table.column("categories", "name")[i] for i in classes],
        annotation_ids=[ids[i] for i in order],
        image_of=image_of[order],
        class_of=class_of[order],
        boxes=np.array(own["bbox"], dtype=np.float64).reshape(-1, 4)[order],
        areas=np.array(own["area"], dtype=np.float64)[order],
        crowd=np.array(own["iscrowd"], dtype=bool)[order],
        segmentations=None
        if masks is None
        else segmentations_of([masks[i] for i in order], sizes[image_of[order]]),
    )


class CocoImages(Sequence):
    """Detectron2's dataset dicts of columns, each made when it is asked for.

    Args:
        image_root: the folder that file names start from.
        chosen: which images, in their order; all if not given.
    """

    def __init__(
        self,
        columns: CocoColumns,
        image_root: str,
        chosen: Sequence[int] | np.ndarray | None = None,
    ):
        self.columns, self.image_root = columns, image_root
        self.chosen = np.arange(len(columns.image_ids)) if chosen is None else np.asarray(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> "CocoImages": ...

    def __getitem__(self, index):
        """Returns one dict, or some of the images for a slice."""
        if isinstance(index, slice):
            return CocoImages(self.columns, self.image_root, self.chosen[index])
        columns, image = self.columns, int(self.chosen[index])
        part = slice(columns.starts[image], columns.starts[image + 1])
        rows = zip(
            columns.boxes[part].tolist(),
            columns.class_of[part].tolist(),
            columns.crowd[part].tolist(),
            strict=True,
        )
        width, height = columns.sizes[image].tolist()
        annotations = [
            {
                "iscrowd": int(crowd),
                "bbox": box,
                "category_id": category,
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for box, category, crowd in rows
        ]
        if columns.segmentations is not None:
            for i, annotation in enumerate(annotations, int(part.start)):
                annotation["segmentation"] = columns.segmentations[i]
        return {
            "file_name": os.path.join(self.image_root, columns.file_names[image]),
            "height": height,
            "width": width,
            "image_id": columns.image_ids[image],
            "annotations": annotations,
        }

    @property
    def sizes(self) -> np.ndarray:
        """The width and height of each image, (N, 2)."""
        return self.columns.sizes[self.chosen]

    @property
    def counts(self) -> np.ndarray:
        """The objects of each image without crowds, (N,)."""
        return self.columns.counts[self.chosen]

    def with_objects(self) -> "CocoImages":
        """Returns the images that have an object which is no crowd."""
        return CocoImages(self.columns, self.image_root, self.chosen[self.counts > 0])


class JoinedImages(Sequence):
    """The images of several data sets, one after another."""

    def __init__(self, parts: Sequence[ImageSet]):
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index):
        """Returns the dict of an image."""
        place = range(len(self))[index]
        part = int(np.searchsorted(self.ends, place, side="right"))
        start = int(self.ends[part]) - len(self.parts[part])
        return self.parts[part][place - start]

    @property
    def sizes(self) -> np.ndarray:
        """The width and height of each image, (N, 2)."""
        return np.concatenate([part.sizes for part in self.parts])

    @property
    def counts(self) -> np.ndarray:
        """The objects of each image without crowds, (N,)."""
        return np.concatenate([part.counts for part in self.parts])


def is_bad_box(columns: CocoColumns) -> np.ndarray:
    """Whether boxes have no area, lie outside their image or beyond float32's pixels, (M,) bool."""
    return are_bad(columns.boxes, columns.sizes[columns.image_of])


def are_bad(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes (M, 4) are bad, see :func:`is_bad_box`; `sizes` (M, 2) are their images'."""
    x, y, width, height = boxes.T
    image_width, image_height = sizes.T
    is_far = ~(np.abs(boxes).max(1, initial=0) <= LARGEST)
    is_empty = ~((width >= SMALLEST) & (height >= SMALLEST))
    is_outside = (x + width <= 0) | (y + height <= 0) | (x >= image_width) | (y >= image_height)
    return is_far | is_empty | is_outside


def is_bad(columns: CocoColumns) -> np.ndarray:
    """Whether an annotation cannot be learned from: its box is bad, or its mask, (M,) bool."""
    bad = is_bad_box(columns)
    masks = columns.segmentations
    return bad if masks is None else bad | (masks.problems > 0)


def find_bad_masks(columns: CocoColumns) -> Iterator[Finding]:
    """Yields masks that cannot be used, and those that are far from their box."""
    masks = columns.segmentations
    if masks is None:
        return
    for kind, text in enumerate(PROBLEMS[1:], 1):
        wrong = np.flatnonzero(masks.problems == kind)
        if len(wrong):
            yield Finding(
                True,
                f"objects with {text}",
                [columns.place(i) for i in wrong],
                "A model of masks learns from no others. Mend them, or leave such objects out: "
                "DATASETS.CUSTOM.BAD_BOXES drop",
                kind="masks",
            )
    sides = columns.boxes[:, 2:]
    corners = np.concatenate([columns.boxes[:, :2], columns.boxes[:, :2] + sides], 1)
    apart = np.abs(corners - masks.extents).reshape(-1, 2, 2).max(1, initial=0)
    is_far = (apart > np.maximum(MASK_OFFSET, MASK_SHARE * sides)).any(1)
    other = np.flatnonzero(is_far & (masks.problems == 0) & ~columns.crowd & ~is_bad_box(columns))
    if len(other):
        text = "boxes that do not fit their masks; boxes are made of the masks in training"
        yield Finding(False, text, [columns.place(i) for i in other])


def find_in_columns(columns: CocoColumns) -> Iterator[Finding]:
    """Yields what is wrong with boxes and contents."""
    bad = is_bad_box(columns)
    if bad.any():
        yield Finding(
            True,
            "boxes (x, y, w, h) that are not finite, have no area or lie outside their image",
            [columns.place(i) for i in np.flatnonzero(bad)],
            "Mend them, or leave them out: DATASETS.CUSTOM.BAD_BOXES drop",
            kind="boxes",
        )
    yield from find_bad_masks(columns)
    yield from find_strange_boxes(columns, bad)
    yield from find_nothing_to_learn(columns, is_bad(columns))
    yield from find_odd_contents(columns)


def find_strange_boxes(columns: CocoColumns, bad: np.ndarray) -> Iterator[Finding]:
    """Yields boxes that are numbers of another kind: relative, or the corners of a box."""
    x, y, width, height = columns.boxes.T
    right, bottom = x + width, y + height
    image_width, image_height = columns.sizes[columns.image_of].T
    if len(columns.boxes) and columns.boxes.min() >= 0 and max(right.max(), bottom.max()) <= 1:
        remedy = "Multiply them by the width and the height of their image"
        text = "all boxes lie within one pixel and look relative to their image (0 to 1)"
        yield Finding(True, text, [columns.place(0)], remedy)
        return
    over = ~bad & (
        (x < -OUTSIDE)
        | (y < -OUTSIDE)
        | (right > image_width + OUTSIDE)
        | (bottom > image_height + OUTSIDE)
    )
    fits = (x >= -OUTSIDE) & (y >= -OUTSIDE) & (width > x) & (height > y)
    fits &= (width <= image_width + OUTSIDE) & (height <= image_height + OUTSIDE)
    far = ~bad & ((right > FAR * image_width) | (bottom > FAR * image_height))
    if far.any() and far.sum() * 2 >= len(far) and (fits | bad).all():
        text = "boxes reach over their images as x, y, w, h, and all fit as corners x0, y0, x1, y1"
        remedy = "COCO's boxes are x, y, width, height: subtract x0 and y0 from x1 and y1"
        yield Finding(True, text, [columns.place(i) for i in np.flatnonzero(over)], remedy)
    elif over.any():
        names = [columns.place(i) for i in np.flatnonzero(over)]
        yield Finding(False, "boxes partly outside their image, which are cut off", names)


def find_nothing_to_learn(columns: CocoColumns, bad: np.ndarray) -> Iterator[Finding]:
    """Yields a set in which no object is left."""
    if not len(columns.image_ids) or (~columns.crowd & ~bad).any():
        return
    reason = "there are no annotations"
    if columns.crowd.any() and columns.crowd.all():
        reason = "every annotation has iscrowd 1, which marks a region to pass over"
    elif len(bad):
        reason = "every box is bad, or of a crowd"
    remedy = "There is nothing to learn, and no AP to compute"
    yield Finding(True, f"no object is left: {reason}", remedy=remedy, kind="nothing")


def find_odd_contents(columns: CocoColumns) -> Iterator[Finding]:
    """Yields what is right, and often a mistake."""
    number = len(columns.image_ids)
    names = columns.file_names
    crowds = np.bincount(columns.image_of[columns.crowd], minlength=number)
    alone = [plain(names[i]) for i in np.flatnonzero((columns.counts == 0) & (crowds > 0))]
    empty = [plain(names[i]) for i in np.flatnonzero((columns.counts == 0) & (crowds == 0))]
    used = np.bincount(columns.class_of, minlength=len(columns.class_names))
    unused = [plain(columns.class_names[i]) for i in np.flatnonzero(used == 0)]
    rows = np.column_stack([columns.image_of, columns.class_of, columns.boxes])
    _, first = np.unique(rows, axis=0, return_index=True)
    twice = np.setdiff1d(np.arange(len(rows)), first)
    found = {
        "boxes given twice": [columns.place(i) for i in twice],
        "images with crowds alone, which count as empty": alone,
        "images without objects, which train as background": empty,
        "classes without any object": unused,
        "classes with the same name": [plain(x) for x in repeated_values(columns.class_names)],
    }
    for text, examples in found.items():
        if examples:
            yield Finding(False, text, examples)


def find_more_objects_than(columns: CocoColumns, num_queries: int) -> Iterator[Finding]:
    """Yields images with more objects than a group has queries."""
    many = np.flatnonzero(columns.counts > num_queries)
    if len(many):
        examples = [f"{plain(columns.file_names[i])} ({columns.counts[i]})" for i in many]
        text = f"images with more objects than MODEL.DETR.NUM_OBJECT_QUERIES ({num_queries})"
        yield Finding(False, text, examples)


def numbers_of(columns: CocoColumns) -> dict:
    """Counts images, objects, classes, objects per image, and the sizes of boxes."""
    per_class = np.bincount(columns.class_of, minlength=len(columns.class_names)).tolist()
    per_image = np.bincount(columns.image_of, minlength=len(columns.image_ids))
    good = ~is_bad_box(columns)
    areas = columns.boxes[good, 2] * columns.boxes[good, 3]
    sides = np.sqrt(areas) / columns.sizes.max(1, initial=1)[columns.image_of[good]]
    quantiles = np.quantile(sides, [0.05, 0.25, 0.5, 0.75, 0.95]) if len(sides) else []
    classes: dict[str, int] = {}
    for name, count in zip(columns.class_names, per_class, strict=True):
        classes[plain(name)] = classes.get(plain(name), 0) + count
    return {
        "images": len(columns.image_ids),
        "objects": len(columns.boxes),
        "classes": classes,
        "objects per image": {
            "mean": float(per_image.mean()) if len(per_image) else 0.0,
            "median": float(np.median(per_image)) if len(per_image) else 0.0,
            "most": int(per_image.max(initial=0)),
        },
        "box sizes": {
            "small (< 32 x 32 pixels)": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large (> 96 x 96 pixels)": int((areas >= MEDIUM).sum()),
        },
        "side of a box relative to its image (5, 25, 50, 75, 95 %)": [
            round(float(q), 4) for q in quantiles
        ],
    }
