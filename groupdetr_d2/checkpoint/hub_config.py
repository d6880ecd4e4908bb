"""Our configuration of a model that `transformers` describes in its config.json.

What has no counterpart here is refused by the name of its key: a model that differs from the
checkpoint's in what no tensor shows would detect worse, and say nothing.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.data import MetadataCatalog

from .files import CheckpointError
from .official import COCO_CATEGORY_IDS

Config = dict[str, Any]
Opts = list[Any]
GAPS = ("n/a", "no object", "")  # names of rows that stand for no class
COCO = "coco_2017_val"  # of which only the class names are read
SAME_NAMES = 70  # of COCO's 80, by which its 91 category ids are known
STAGE = {f"stage{i}": f"res{i + 1}" for i in range(1, 5)}
DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
RESNET_NAME = re.compile(r"^(?:microsoft/)?resnet-?(18|34|50|101|152)(?:\.\w+)?$")


@dataclass(frozen=True)
class Described:
    """A model that config.json describes, in our terms.

    Attributes:
        source: the converter's name.
        config_file: the yaml that the model is nearest to.
        opts: overrides of it.
        rows: the rows of the class heads that are classes, of `num_rows`.
        names: those classes.
    """

    source: str
    config_file: str
    opts: Opts
    rows: list[int]
    num_rows: int
    names: list[str]


@dataclass(frozen=True)
class Kind:
    """A model type of `transformers`.

    Attributes:
        architecture: the class whose files can be converted.
        sizes: our keys below MODEL.DETR by its keys, with its defaults.
        fixed: the values that its keys must have; the first is the default.
        equal: pairs of its keys that must have the same value.
        settle: makes the overrides that need more than one key.
    """

    source: str
    config_file: str
    architecture: str
    sizes: dict[str, tuple[str, int]]
    fixed: dict[str, Sequence[Any]] = field(default_factory=dict)
    equal: Sequence[tuple[str, str]] = ()
    settle: Callable[[Config, Opts], Opts] = lambda config, backbone: backbone


def describe(config: Config, preprocessor: Config | None, of: str) -> Described:
    """Describes a model in our terms.

    Args:
        config: its config.json.
        preprocessor: its preprocessor_config.json, if there is one.
        of: what errors call the model.

    Raises:
        CheckpointError: it is no model that stands here, or has what ours do not have.
    """
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{of} is a model of type {config.get('model_type')!r}; those that can be converted "
            f"are {', '.join(KINDS)}"
        )
    try:
        _check(config, kind)
        rows, num_rows, names = classes_of(config)
        opts = kind.settle(config, backbone_opts(config))
        sizes = {ours: config.get(key, value) for key, (ours, value) in kind.sizes.items()}
        sizes["NUM_CLASSES"] = len(names)
        opts += [x for key, value in sizes.items() for x in (f"MODEL.DETR.{key}", int(value))]
        opts += preprocessor_opts(preprocessor or {})
    except CheckpointError as error:
        raise CheckpointError(f"{of}: {error}") from error
    except Exception as error:  # a value of a wrong type can raise anything
        raise CheckpointError(
            f"{of}: its configuration has values of unexpected kinds "
            f"({type(error).__name__}: {error})"
        ) from error
    if names != list(MetadataCatalog.get(COCO).thing_classes):
        opts += ["DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    return Described(kind.source, kind.config_file, opts, rows, num_rows, names)


def _check(config: Config, kind: Kind) -> None:
    """Checks that config.json has nothing that ours do not have."""
    architectures = config.get("architectures") or [kind.architecture]
    if kind.architecture not in architectures:
        raise CheckpointError(f"it is a {architectures[0]}; {kind.architecture} can be converted")
    for key, values in kind.fixed.items():
        value = config.get(key, values[0])
        if value not in values:
            raise CheckpointError(f"its {key} is {value!r}, which models here cannot have")
    for first, second in kind.equal:
        a, b = config.get(first), config.get(second)
        if a is not None and b is not None and a != b:
            raise CheckpointError(f"its {first} is {a} and its {second} {b}; here they are one")


def classes_of(config: Config) -> tuple[list[int], int, list[str]]:
    """Reads the classes of id2label.

    COCO's detectors have 91 rows, one for each category id from 0 to 90; the eleven ids that no
    category has are called "N/A" or after things that COCO's annotations lack. Other rows called
    "N/A" are left out, too.

    Returns:
        the rows that are classes, how many there are with those that are none, and their names;
        names that say nothing, such as "LABEL_3", become numbers, as of a data set without names.
    """
    labels = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    names = {int(row): str(name).strip() for row, name in labels.items()}
    num_rows = max(names) + 1
    coco = list(MetadataCatalog.get(COCO).thing_classes)
    own = [names.get(row, "") for row in COCO_CATEGORY_IDS]
    if num_rows == 91 and sum(a == b for a, b in zip(own, coco, strict=True)) >= SAME_NAMES:
        return list(COCO_CATEGORY_IDS), num_rows, own
    rows = [row for row in sorted(names) if names[row].lower() not in GAPS]
    if not rows:
        raise CheckpointError("its id2label names no class")
    if all(names[row] == f"LABEL_{row}" for row in rows):
        return rows, num_rows, [str(i) for i in range(len(rows))]
    return rows, num_rows, [names[row] for row in rows]


def backbone_opts(config: Config) -> Opts:
    """Makes the overrides of the backbone, and OUT_FEATURES of what it returns.

    Raises:
        CheckpointError: it is no ResNet, or none that can be built here.
    """
    backbone = config.get("backbone_config") or {}
    kind = backbone.get("model_type", "timm_backbone" if config.get("use_timm_backbone", 1) else "")
    if kind == "resnet":
        return _resnet_opts(backbone)
    name = str(backbone.get("backbone") or config.get("backbone") or "resnet50")
    found = RESNET_NAME.match(name)
    if not found or kind not in ("timm_backbone", ""):
        name = name if kind in ("timm_backbone", "") else kind
        raise CheckpointError(f"its backbone is {name}; ResNets can be converted")
    depth = int(found[1])
    opts = ["MODEL.RESNETS.DEPTH", depth, *_basic_opts(depth)]
    is_dc5 = backbone.get("output_stride", 16 if config.get("dilation") else 32) == 16
    if is_dc5 and kind == "timm_backbone":
        opts += ["MODEL.BACKBONE.NAME", "build_resnet_dc5_backbone"]
    indices = backbone.get("out_indices") or [1, 2, 3, 4]
    return [*opts, "MODEL.RESNETS.OUT_FEATURES", [f"res{i + 1}" for i in indices if i > 0]]


def _basic_opts(depth: int) -> Opts:
    return ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64] if depth < 50 else []


def _resnet_opts(backbone: Config) -> Opts:
    """Makes the overrides of a ResNet of `transformers`."""
    hidden = list(backbone.get("hidden_sizes", (256, 512, 1024, 2048)))
    depths = tuple(backbone.get("depths", (3, 4, 6, 3)))
    layer = backbone.get("layer_type", "bottleneck")
    depth = DEPTHS.get((layer, depths))
    doubled = [hidden[0] * 2**i for i in range(len(hidden))]
    if depth is None or hidden != doubled or backbone.get("downsample_in_first_stage"):
        raise CheckpointError(f"its ResNet of depths {depths} and widths {hidden} has no like here")
    features = backbone.get("out_features") or ["stage4"]
    return [
        *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", hidden[0]),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", hidden[0] // 4 if layer == "bottleneck" else 64),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", backbone.get("embedding_size", 64)),
        *("MODEL.RESNETS.STRIDE_IN_1X1", bool(backbone.get("downsample_in_bottleneck", False))),
        *("MODEL.RESNETS.OUT_FEATURES", [STAGE[x] for x in features if x in STAGE]),
    ]


def _with_features(opts: Opts, features: Sequence[str]) -> Opts:
    at = opts.index("MODEL.RESNETS.OUT_FEATURES")
    names = list(features)
    return [*opts[:at], *opts[at + 2 :], opts[at], names, "MODEL.DETR.IN_FEATURES", names]


def _features(opts: Opts) -> list[str]:
    return opts[opts.index("MODEL.RESNETS.OUT_FEATURES") + 1]


def _settle_last(config: Config, backbone: Opts) -> Opts:
    """Reads the last feature map alone, as DETR does."""
    return _with_features(backbone, _features(backbone)[-1:])


def _settle_dab(config: Config, backbone: Opts) -> Opts:
    scale = config.get("sine_position_embedding_scale")
    if scale is not None and abs(scale - 2 * math.pi) > 1e-4:
        raise CheckpointError(f"its sine_position_embedding_scale is {scale}; here it is 2 pi")
    temperature = int(config.get("temperature_height", 20))
    opts = _settle_last(config, backbone)
    return [*opts, "MODEL.DETR.POSITION_TEMPERATURE", temperature]


def _settle_deformable(config: Config, backbone: Opts) -> Opts:
    """Chooses levels, box refinement and stages."""
    levels = int(config.get("num_feature_levels", 4))
    # timm's backbone returns three maps, or the last one if there is one level
    is_named = (config.get("backbone_config") or {}).get("model_type") != "resnet"
    named = ["res3", "res4", "res5"] if levels > 1 else ["res5"]
    features = named if is_named else _features(backbone)
    is_two_stage = bool(config.get("two_stage", False))
    queries = "two_stage_num_proposals" if is_two_stage else "num_queries"
    return [
        *_with_features(backbone, features),
        *("MODEL.DETR.EXTRA_LEVELS", levels - len(features)),
        *("MODEL.DETR.BOX_REFINE", bool(config.get("with_box_refine", False))),
        *("MODEL.DETR.TWO_STAGE", "objectness" if is_two_stage else ""),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", int(config.get(queries, 300))),
        *("MODEL.DETR.NUM_POINTS", int(config.get("decoder_n_points", 4))),
    ]


def _settle_masks(config: Config, backbone: Opts) -> Opts:
    """Counts decoder layers as we do: their number is that of predictions."""
    opts = _with_features(backbone, ["res2", "res3", "res4", "res5"])
    return [*opts, "MODEL.DETR.DEC_LAYERS", int(config.get("decoder_layers", 10)) - 1]


def preprocessor_opts(preprocessor: Config) -> Opts:
    """Makes the overrides of size and normalisation of images at inference."""
    opts: Opts = []
    size = preprocessor.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": preprocessor.get("max_size", 1333)}
    if isinstance(size, dict) and "shortest_edge" in size:
        opts += ["INPUT.MIN_SIZE_TEST", int(size["shortest_edge"])]
        opts += ["INPUT.MAX_SIZE_TEST", int(size.get("longest_edge") or 1333)]
    elif isinstance(size, dict) and {"height", "width"} <= set(size):  # here the aspect ratio stays
        opts += ["INPUT.MIN_SIZE_TEST", int(min(size["height"], size["width"]))]
        opts += ["INPUT.MAX_SIZE_TEST", int(max(size["height"], size["width"]))]
    if not preprocessor.get("do_normalize", True):
        return [*opts, "MODEL.PIXEL_MEAN", [0.0] * 3, "MODEL.PIXEL_STD", [255.0] * 3]
    for key, ours in (("image_mean", "MODEL.PIXEL_MEAN"), ("image_std", "MODEL.PIXEL_STD")):
        if key in preprocessor:
            opts += [ours, [round(255.0 * float(x), 4) for x in preprocessor[key]]]
    return opts


def _detr_sizes(width: str, ffn: int) -> dict[str, tuple[str, int]]:
    return {
        "num_queries": ("NUM_OBJECT_QUERIES", 300),
        width: ("HIDDEN_DIM", 256),
        "encoder_attention_heads": ("NHEADS", 8),
        "encoder_ffn_dim": ("DIM_FEEDFORWARD", ffn),
        "encoder_layers": ("ENC_LAYERS", 6),
        "decoder_layers": ("DEC_LAYERS", 6),
    }


SAME_SIZES = [
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("encoder_attention_heads", "decoder_attention_heads"),
]
KINDS = {
    "conditional_detr": Kind(
        "hf-conditional-detr",
        "ConditionalDETR/conditional_detr_R_50_50ep.yaml",
        "ConditionalDetrForObjectDetection",
        _detr_sizes("d_model", 2048),
        {"activation_function": ("relu",), "position_embedding_type": ("sine",)},
        SAME_SIZES,
        _settle_last,
    ),
    "dab-detr": Kind(
        "hf-dab-detr",
        "DAB-DETR/dab_detr_R_50_50ep.yaml",
        "DabDetrForObjectDetection",
        _detr_sizes("hidden_size", 2048),
        {
            "activation_function": ("prelu",),
            "query_dim": (4,),
            "num_patterns": (0,),
            "keep_query_pos": (False,),
            "normalize_before": (False,),
        },
        [*SAME_SIZES, ("temperature_height", "temperature_width")],
        _settle_dab,
    ),
    "deformable_detr": Kind(
        "hf-deformable-detr",
        "Deformable-DETR/deformable_detr_R_50_50ep.yaml",
        "DeformableDetrForObjectDetection",
        {k: v for k, v in _detr_sizes("d_model", 1024).items() if k != "num_queries"},
        {"activation_function": ("relu",), "position_embedding_type": ("sine",)},
        [*SAME_SIZES, ("encoder_n_points", "decoder_n_points")],
        _settle_deformable,
    ),
    "mask2former": Kind(
        "hf-mask2former",
        "Mask2Former/mask2former_R_50_50ep.yaml",
        "Mask2FormerForUniversalSegmentation",
        {
            "num_queries": ("NUM_OBJECT_QUERIES", 100),
            "hidden_dim": ("HIDDEN_DIM", 256),
            "num_attention_heads": ("NHEADS", 8),
            "dim_feedforward": ("DIM_FEEDFORWARD", 2048),
            "encoder_layers": ("ENC_LAYERS", 6),
        },
        {
            "activation_function": ("relu",),
            "encoder_feedforward_dim": (1024,),
            "pre_norm": (False,),
            "enforce_input_projection": (False,),
            "common_stride": (4,),
        },
        [("hidden_dim", "feature_size"), ("hidden_dim", "mask_feature_size")],
        _settle_masks,
    ),
}
