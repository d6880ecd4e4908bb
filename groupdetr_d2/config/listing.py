"""The yamls as a list: task, groups, epochs and the paper's figures, without PyTorch.

A figure stands in one place, the comment at the head of its yaml.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import config_folder, known_configs
from .yaml_file import BASE, YamlError, base_path, load_mapping

TASKS = {"GroupDETR": "boxes", "GroupMask2Former": "masks", "GroupPETR": "3D boxes"}
# images of an epoch, as the schedules count them
IMAGES = {
    "coco_2017_train": 118287,
    "nuscenes_train": 28130,
    "objects365_v2_train_wo_5k": 1817289,
}
BATCH = 16  # where no yaml says another
HEAD = re.compile(r"(?:#.*\n)+")
PLACE = r"(Table \w+(?: [a-d])?|Section [\d.]+)"
PAPER = re.compile(rf"# paper \(Group DETR, {PLACE}\)[^:\n]*: ([^;\n]*)")
FIGURE = re.compile(r"\d+\.\d (?:mask )?(?:AP|NDS|mAP)\b")


@dataclass(frozen=True)
class Listed:
    """A line of the list: a yaml and what it is for.

    Attributes:
        name: its path, from `configs/` on.
        task: "boxes", "masks" or "3D boxes".
        num_groups: K.
        epochs: of its schedule; None if its data set has no known size.
        paper: the figures of the Group DETR paper, such as "37.6 AP"; empty without any.
        table: the table or section of the paper that has them.
    """

    name: str
    task: str
    num_groups: int
    epochs: float | None
    paper: str
    table: str


def list_configs(words: Sequence[str] = ()) -> list[Listed]:
    """Lists the yamls of `configs/` whose paths have all of these words, in any case."""
    wanted = [word.lower() for word in words]
    found = (x for x in known_configs() if all(word in x.as_posix().lower() for word in wanted))
    return [list_config(path) for path in found]


def list_config(path: Path) -> Listed:
    """Reads what a list says about a yaml.

    Args:
        path: relative to `configs/`.
    """
    file = config_folder() / path
    settings = read_yaml(str(file))
    model = settings.get("MODEL", {})
    paper, table = paper_of(file)
    return Listed(
        name=f"configs/{path.as_posix()}",
        task=TASKS[model.get("META_ARCHITECTURE", "GroupDETR")],
        num_groups=model.get("DETR", {}).get("NUM_GROUPS", 1),
        epochs=epochs_of(settings, path.stem),
        paper=paper,
        table=table,
    )


def paper_of(file: str | Path) -> tuple[str, str]:
    """Reads the paper's figures and their table from the head of a yaml; empty without any."""
    head = HEAD.match(Path(file).read_text(encoding="utf-8"))
    match = PAPER.search(head[0]) if head else None
    return (", ".join(FIGURE.findall(match[2])), match[1]) if match else ("", "")


def epochs_of(settings: dict, stem: str) -> float | None:
    """The epochs of a schedule: those of the file's name, or its iterations over its images."""
    named = re.search(r"_(\d+)ep$", stem)
    if named:
        return float(named[1])
    solver, data = settings.get("SOLVER", {}), settings.get("DATASETS", {})
    images = number_of_images(data)
    if not images or "MAX_ITER" not in solver:
        return None
    return solver["MAX_ITER"] * solver.get("IMS_PER_BATCH", BATCH) / images


def number_of_images(data: dict) -> int | None:
    """The training images of a section DATASETS; None if they are not known."""
    cubes, names = data.get("CUBES", {}), str(data.get("TRAIN", ""))
    if "shapes_train" in names:
        return data.get("SHAPES", {}).get("NUM_TRAIN", 4000)
    if "cubes_train" in names and "TRAIN_SCENES" in cubes and "KEYFRAMES" in cubes:
        return cubes["TRAIN_SCENES"] * cubes["KEYFRAMES"]
    return next((number for name, number in IMAGES.items() if name in names), None)


def read_yaml(path: str) -> dict:
    """Reads a yaml and those it is based on; what cannot be read is empty, and reported later."""
    try:
        content = load_mapping(path)
        bases = content.pop(BASE, [])
        merged: dict = {}
        for base in bases if isinstance(bases, list) else [bases]:
            merge(merged, read_yaml(base_path(path, base)))
    except (YamlError, RecursionError):
        return {}
    return merge(merged, content)


def merge(settings: dict, more: dict) -> dict:
    """Merges nested settings in place; the latter win."""
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = merge(settings[key], value) if both else value
    return settings
