"""The quick-start set: textured shapes in COCO's format, generated once from a seed.

Six classes that differ in outline alone (colour and texture are random), many small and partly
hidden objects in an image, on a background of noise, blobs and line clutter. It is hard enough that
AP tells models apart, and small enough to train on with a CPU. Masks are the pixels that can be
seen; boxes reach around hidden parts, too.
"""

import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import UserError
from .coco_rules import box_annotation
from .segmentations import encode

logger = logging.getLogger(__name__)

CLASSES = ("circle", "ring", "square", "diamond", "triangle", "cross")
MIN_VISIBLE = 0.5  # of an object's pixels, after everything is drawn
VERSION = 2  # counts changes of what is written, so that an old cache is not taken for a new one


@dataclass(frozen=True)
class ShapesSpec:
    """A generated set: `num_images` square images with up to `max_objects` objects each.

    `classes` are those of CLASSES that are drawn, in the order of the annotations' categories.
    """

    split: str
    num_images: int
    image_size: int = 128
    max_objects: int = 12
    seed: int = 0
    classes: tuple[str, ...] = CLASSES

    @property
    def folder(self) -> str:
        """A folder name that tells specifications apart."""
        of_classes = "" if self.classes == CLASSES else f"_{'-'.join(self.classes)}"
        return (
            f"{self.split}_{self.num_images}x{self.image_size}_objects{self.max_objects}"
            f"_seed{self.seed}{of_classes}_v{VERSION}"
        )


SPECS = {
    "shapes_train": ShapesSpec("train", num_images=4000, max_objects=8, seed=0),
    "shapes_val": ShapesSpec("val", num_images=400, max_objects=8, seed=1),
}


def register_shapes(cfg) -> None:
    """Registers `shapes_train` and `shapes_val` as DATASETS.SHAPES says, where they are used.

    They are generated when they are read, unless they are in the cache.

    Raises:
        UserError: DATASETS.SHAPES.CLASSES has a name that no shape has.
    """
    shapes = cfg.DATASETS.SHAPES
    unknown = set(shapes.CLASSES) - set(CLASSES)
    if unknown:
        raise UserError(
            f"DATASETS.SHAPES.CLASSES has {sorted(unknown)[0]!r}; it takes {', '.join(CLASSES)}"
        )
    numbers = {"shapes_train": shapes.NUM_TRAIN, "shapes_val": shapes.NUM_VAL}
    for name in {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} & SPECS.keys():
        if not is_generated(name):
            continue
        spec = replace(
            SPECS[name],
            num_images=numbers[name],
            image_size=shapes.IMAGE_SIZE,
            max_objects=shapes.MAX_OBJECTS,
            classes=tuple(shapes.CLASSES) or CLASSES,
        )
        register_spec(name, spec)


def is_generated(name: str) -> bool:
    """Whether a name is registered as one of these sets; someone else's stays what it is."""
    is_known = name in DatasetCatalog.list()
    return is_known and MetadataCatalog.get(name).get("is_generated", False)


def shapes_root() -> Path:
    """The folder of generated sets, in $DETECTRON2_DATASETS."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "shapes"


def register_spec(name: str, spec: ShapesSpec) -> None:
    """Registers a set, in place of another specification; it is generated when it is loaded."""
    root = shapes_root()
    folder = root / spec.folder
    json_file, image_root = str(folder / "annotations.json"), str(folder / "images")

    def load() -> list[dict]:
        generate_shapes(spec, root)
        return load_coco_json(json_file, image_root, name)

    if is_generated(name):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=list(spec.classes),
        is_generated=True,
        prepare=partial(generate_shapes, spec, root),
    )


def generate_shapes(spec: ShapesSpec, root: Path) -> Path:
    """Returns the folder with `annotations.json` and `images/`; makes it if it is not there.

    It is written under a temporary name and moved into place, so that an interrupted or a parallel
    run never leaves half a set.
    """
    folder = root / spec.folder
    if folder.exists():
        return folder
    logger.info("generating %d images in %s", spec.num_images, folder)
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=root))
    unfinished.chmod(0o755)  # for others who share the folder
    (unfinished / "images").mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(spec.num_images):
        picture, objects, owner = draw_image(np.random.default_rng([spec.seed, i]), spec)
        name = f"{i:06d}.jpg"
        cv2.imwrite(str(unfinished / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        size = {"width": spec.image_size, "height": spec.image_size}
        images.append({"id": i, "file_name": name, **size})
        masks = encode(owner == np.arange(len(objects))[:, None, None])
        for (category, (x, y, w, h)), mask in zip(objects, masks, strict=True):
            number = len(annotations) + 1
            annotation = box_annotation(number, i, category + 1, (x, y, w, h))
            annotations.append({**annotation, "segmentation": mask})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(spec.classes)]
    content = {
        "info": asdict(spec),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (unfinished / "annotations.json").write_text(json.dumps(content))
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    return folder


def draw_image(
    rng: np.random.Generator, spec: ShapesSpec
) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]], np.ndarray]:
    """Draws an image.

    Returns:
        the image (H, W, 3) uint8, its objects, (class, (x, y, w, h)), and of every pixel the object
        that is seen there, (H, W), -1 on the background.
    """
    size = spec.image_size
    picture = _background(rng, size)
    owner = np.full((size, size), -1)  # the topmost object of every pixel
    objects: list[tuple[int, tuple[int, int, int, int]]] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(max(1, spec.max_objects // 3), spec.max_objects + 1))):
        category = int(rng.integers(len(spec.classes)))
        mask = _random_mask(rng, spec.classes[category], size)
        candidate = np.where(mask, len(objects), owner)
        visible = np.bincount(candidate[candidate >= 0], minlength=len(objects) + 1)
        all_areas = np.array([*areas, mask.sum()])
        if (visible < MIN_VISIBLE * all_areas).any():
            continue
        owner = candidate
        areas.append(mask.sum())
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        objects.append((category, (x, y, w, h)))
        picture[mask] = _texture(rng, size)[mask]
    noise = rng.normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), objects, owner


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws smooth colour blobs with lines across them."""
    coarse = rng.integers(90, 166, (4, 4, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(2, 6))):
        ends = rng.integers(0, size, 4).tolist()
        colour = rng.integers(60, 196, 3).tolist()
        cv2.line(picture, ends[:2], ends[2:], colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return picture


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws stripes of two shades of a strong colour, of a random direction and width."""
    direction, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    y, x = np.mgrid[:size, :size]
    stripes = np.sin((x * np.cos(direction) + y * np.sin(direction)) * 2 * np.pi / period) > 0
    first = rng.permutation([rng.integers(200, 256), rng.integers(0, 256), rng.integers(0, 56)])
    second = np.clip(first + rng.integers(-40, 41, 3), 0, 255)
    return np.where(stripes[..., None], first, second).astype(np.float32)


def _random_mask(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Draws the pixels of an object of a class, (H, W) bool, wholly inside the image."""
    radius = size * rng.uniform(0.08, 0.22)
    center = rng.uniform(radius + 1, size - radius - 1, 2)
    angle = rng.uniform(-0.2, 0.2)
    aspect = rng.uniform(0.7, 1.0)
    mask = np.zeros((size, size), np.uint8)
    for outline, value in _outlines(name):
        points = outline * [radius, radius * aspect]
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        cv2.fillPoly(mask, [np.round(points @ turn + center).astype(np.int32)], (value,))
    return mask.astype(bool)


def _outlines(name: str) -> list[tuple[np.ndarray, int]]:
    """Lists polygons within the unit circle or square, each with the value that fills it."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    a, b = 0.85, 0.3
    cross = [(-b, -1), (b, -1), (b, -b), (1, -b), (1, b), (b, b)]
    cross += [(b, 1), (-b, 1), (-b, b), (-1, b), (-1, -b), (-b, -b)]
    polygons = {
        "circle": [(circle, 1)],
        "ring": [(circle, 1), (0.5 * circle, 0)],
        "square": [(np.array([(-a, -a), (a, -a), (a, a), (-a, a)]), 1)],
        "diamond": [(np.array([(0, -1), (1, 0), (0, 1), (-1, 0)]), 1)],
        "triangle": [(np.array([(0, -1), (0.95, 0.8), (-0.95, 0.8)]), 1)],
        "cross": [(np.array(cross), 1)],
    }
    return polygons[name]


for _name, _spec in SPECS.items():  # as Detectron2 registers its own
    if _name not in DatasetCatalog.list():
        register_spec(_name, _spec)
