"""Objects365 of 2020 (v2): its registered data sets, and how its classes are recognised.

The sets are those of Group DETR's largest system: 5,000 of the 80,000 validation images stay
validation, and the others join training. `prepare-objects365` makes their files.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .catalog import images_of

TRAIN, VAL = "objects365_v2_train_wo_5k", "objects365_v2_minival5k"
FILES = {TRAIN: "zhiyuan_objv2_train_val_wo_5k.json", VAL: "zhiyuan_objv2_minival5k.json"}
NUM_CLASSES = 365
# the two editions have as many classes, in another order
FIRST_CLASSES = ("person", "sneakers", "chair", "other shoes", "hat", "car", "lamp")
FIRST_CLASSES_OF_V1 = ("person", "sneakers", "chair", "hat", "lamp")


def objects365_root() -> Path:
    """The usual folder of Objects365, in $DETECTRON2_DATASETS."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "objects365"


def is_objects365(classes: Sequence[str]) -> bool:
    """Whether these are the classes of Objects365 v2, in the order of their ids."""
    return len(classes) == NUM_CLASSES and _begins_with(classes, FIRST_CLASSES)


def is_first_edition(classes: Sequence[str]) -> bool:
    """Whether these are the classes of Objects365 v1 of 2019, in the order of their ids."""
    return _begins_with(classes, FIRST_CLASSES_OF_V1)


def _begins_with(classes: Sequence[str], first: Sequence[str]) -> bool:
    return tuple(x.strip().lower() for x in classes[: len(first)]) == tuple(first)


def register_objects365(root: str | Path | None = None) -> None:
    """Registers both sets, in place of those of another folder; their files are read on demand.

    A name that someone else has registered stays what it is.

    Args:
        root: the folder of Objects365; :func:`objects365_root` if not given.
    """
    folder = Path(root or objects365_root())
    for name, file in FILES.items():
        metadata = MetadataCatalog.get(name)
        if name in DatasetCatalog.list():
            if metadata.get("remedy") is None:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        _register(name, str(folder / file), str(folder))


def _register(name: str, json_file: str, root: str) -> None:
    DatasetCatalog.register(name, lambda: list(images_of(name)))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=root,
        evaluator_type="coco",
        remedy=f"Make it once: python -m groupdetr_d2 prepare-objects365 --root {root}",
        # the command has looked at everything in the training set, which takes minutes
        is_examined=name == TRAIN,
    )
