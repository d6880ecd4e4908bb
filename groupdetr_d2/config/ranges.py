"""The numbers that keys can have: what cannot be built is refused before it is tried."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..errors import UserError
from .choices import value_of

LARGEST_IMAGE = 16_384  # pixels of a side
# key: the smallest and the largest value
RANGES: dict[str, tuple[float, float]] = {
    "MODEL.DETR.NUM_GROUPS": (1, 1000),
    "MODEL.DETR.NUM_OBJECT_QUERIES": (1, 100_000),
    "MODEL.DETR.NUM_CLASSES": (1, 1_000_000),
    "MODEL.DETR.HIDDEN_DIM": (4, 16_384),
    "MODEL.DETR.NHEADS": (1, 1024),
    "MODEL.DETR.DIM_FEEDFORWARD": (1, 1_000_000),
    "MODEL.DETR.DROPOUT": (0, 0.999),
    "MODEL.DETR.ENC_LAYERS": (0, 1000),
    "MODEL.DETR.DEC_LAYERS": (1, 1000),
    "MODEL.DETR.EXTRA_LEVELS": (0, 16),
    "MODEL.DETR.NUM_POINTS": (1, 256),
    "MODEL.DETR.DENOISING.NUM_QUERIES": (0, 100_000),
    "MODEL.DETR.MATCHES_PER_TARGET": (1, 1000),
    "MODEL.DETR.SIZE_DIVISIBILITY": (0, 1024),
    "MODEL.DETR.NO_OBJECT_WEIGHT": (1e-4, 1e4),
    "MODEL.DETR.TRAIN_NUM_POINTS": (1, 10**7),
    "MODEL.DETR.OVERSAMPLE_RATIO": (1, 100),
    "MODEL.DETR.IMPORTANCE_SAMPLE_RATIO": (0, 1),
    "MODEL.DETR.SPACE.NUM_DEPTHS": (1, 10_000),
    "MODEL.DETR.SPACE.FIRST_DEPTH": (1e-3, 1e4),
    "MODEL.DETR.SPACE.QUERY_SPREAD": (0.0, 100.0),
    "MODEL.VIT.EMBED_DIM": (1, 100_000),
    "MODEL.VIT.DEPTH": (1, 1000),
    "MODEL.VIT.NUM_HEADS": (1, 1024),
    "MODEL.VIT.PATCH_SIZE": (14, 16),
    "MODEL.VIT.WINDOW_SIZE": (0, 1024),
    "MODEL.VIT.DROP_PATH_RATE": (0, 0.999),
    "MODEL.VIT.PRETRAIN_GRID": (1, 1024),
    "MODEL.VIT.RELATIVE_GRID": (1, 1024),
    "MODEL.VIT.PYRAMID_CHANNELS": (1, 100_000),
    "INPUT.GRID_MASK": (0, 1),
    "INPUT.VIEWS.FRAME_SECONDS": (1e-3, 60),
    "INPUT.VIEWS.ROTATION": (0, 3.15),
    "DATASETS.CUBES.TRAIN_SCENES": (1, 100_000),
    "DATASETS.CUBES.VAL_SCENES": (1, 100_000),
    "DATASETS.CUBES.OBJECTS": (1, 200),
    "DATASETS.CUBES.WIDTH": (16, LARGEST_IMAGE),
    "DATASETS.CUBES.HEIGHT": (16, LARGEST_IMAGE),
    "DATASETS.CUBES.SWEEPS": (0, 20),
    "DATASETS.CUBES.FAR": (1, 200),
    "DATASETS.CUBES.NEAR": (0, 200),
    "DATASETS.CUBES.KEYFRAMES": (1, 1000),
    "MODEL.EMA.DECAY": (0, 1),
    "SOLVER.LAYER_DECAY": (1e-3, 1),
    "SOLVER.COMPONENT_DECAY": (1e-3, 1),
    "SOLVER.MAX_ITER": (1, 10**12),
    "SOLVER.IMS_PER_BATCH": (1, 10**6),
    "SOLVER.EPOCHS": (0, 10**6),
    "SOLVER.CHECKPOINT_PERIOD": (1, 10**12),
    "TEST.EVAL_PERIOD": (0, 10**12),
    "TEST.DETECTIONS_PER_IMAGE": (1, 10**6),
    "TEST.IMS_PER_BATCH": (1, 10**4),
    "INPUT.IMAGE_SIZE": (0, LARGEST_IMAGE),
    "INPUT.MIN_SCALE": (1e-3, 100),
    "INPUT.MAX_SCALE": (1e-3, 100),
    "INPUT.MIN_SIZE_TEST": (0, LARGEST_IMAGE),
    "INPUT.MAX_SIZE_TEST": (1, LARGEST_IMAGE),
    "INPUT.MAX_SIZE_TRAIN": (1, LARGEST_IMAGE),
    "TEST.AUG.MAX_SIZE": (0, LARGEST_IMAGE),
    "DATALOADER.NUM_WORKERS": (0, 1024),
}


class RangeError(UserError):
    """A key has a number that nothing can be built with; the message gives those that work."""


def check_ranges(cfg: CfgNode) -> None:
    """Checks every key of the table, and the keys that have to fit one another.

    Raises:
        RangeError: naming the key, its value and the numbers that it can be.
    """
    for key, (lowest, highest) in RANGES.items():
        value = value_of(cfg, key)
        if not lowest <= value <= highest:
            raise RangeError(f"{key} is {value}; it can be {lowest} to {highest}")
    detr = cfg.MODEL.DETR
    if detr.HIDDEN_DIM % detr.NHEADS or detr.HIDDEN_DIM % 4:
        raise RangeError(
            f"MODEL.DETR.HIDDEN_DIM is {detr.HIDDEN_DIM}; it has to be a multiple of 4 and of "
            f"MODEL.DETR.NHEADS ({detr.NHEADS})"
        )
    check_corners("MODEL.DETR.SPACE.BOX_RANGE", detr.SPACE.BOX_RANGE)
    check_corners("MODEL.DETR.SPACE.POSITION_RANGE", detr.SPACE.POSITION_RANGE)
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = cfg.MODEL[key]
        if len(values) != 3 or not all(isinstance(x, (int, float)) for x in values):
            raise RangeError(f"MODEL.{key} is {list(values)}; it has to be three numbers")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes,)
    if not sizes or not all(isinstance(x, int) and 0 < x <= LARGEST_IMAGE for x in sizes):
        raise RangeError(
            f'INPUT.MIN_SIZE_TRAIN is {sizes}; it has to be numbers of pixels, such as "(480, 800)"'
        )
    check_views(cfg.TEST.AUG)


def check_views(aug: CfgNode) -> None:
    """Checks the sizes of test-time augmentation.

    Raises:
        RangeError: naming the key and its value.
    """
    sizes, scales = aug.MIN_SIZES, aug.SCALES
    if not all(isinstance(x, int) and 0 < x <= LARGEST_IMAGE for x in sizes):
        raise RangeError(
            f"TEST.AUG.MIN_SIZES is {list(sizes)}; it has to be numbers of pixels, such as "
            '"(480, 800)", or "()" for those of TEST.AUG.SCALES'
        )
    are_factors = all(isinstance(x, (int, float)) and 0.01 <= x <= 100 for x in scales)
    if not are_factors or not (scales or sizes):
        raise RangeError(
            f"TEST.AUG.SCALES is {list(scales)}; it has to be factors of INPUT.MIN_SIZE_TEST, such "
            'as "(0.5, 1.0, 1.5)"'
        )


def check_corners(key: str, values: Sequence[float]) -> None:
    """Checks that a key has the lowest and the highest corner of a part of space.

    Raises:
        RangeError: naming the key and its value.
    """
    are_numbers = len(values) == 6 and all(isinstance(x, (int, float)) for x in values)
    if not are_numbers or not all(a < b for a, b in zip(values[:3], values[3:], strict=True)):
        raise RangeError(
            f"{key} is {list(values)}; it has to be x, y, z of the lowest corner and then of the "
            "highest"
        )
