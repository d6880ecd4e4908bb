"""Rules of the code base that reviewers would otherwise have to remember."""

import ast
import re

import pytest
from detectron2.config import CfgNode, get_cfg

from groupdetr_d2.config import add_groupdetr_config
from tests.conftest import ROOT

PACKAGE = ROOT / "groupdetr_d2"
FILES = sorted(PACKAGE.rglob("*.py"))
# a part may import those before it, never those after
ORDER = [
    *("errors", "tables", "name_patterns", "distributed", "groups", "structures", "registry"),
    *("config", "layers", "losses", "data", "evaluation", "tasks", "modeling", "variants"),
    *(
        "checkpoint",
        "model_zoo",
        "inference",
        "engine",
        "analysis",
        "commands",
        "api",
        "__init__",
        "__main__",
    ),
]
# between the two ends of a model nothing is called after a box: a task may predict anything else
MIDDLE = [
    *("structures.py", "losses/criterion.py", "losses/matcher.py", "modeling/decoder.py"),
    *("modeling/denoising.py", "modeling/head.py", "inference/by_group.py"),
]
READS_CFG = re.compile(
    r"^(from_config|task_of|build_\w+|add_\w+|_add_\w+|register_\w+|settle_\w+|check_\w+)$"
)
KEYS = """
MODEL.DETR.VARIANT MODEL.DETR.NUM_GROUPS MODEL.DETR.NUM_OBJECT_QUERIES MODEL.DETR.NUM_CLASSES
MODEL.DETR.IN_FEATURES MODEL.DETR.HIDDEN_DIM MODEL.DETR.NHEADS MODEL.DETR.DIM_FEEDFORWARD
MODEL.DETR.DROPOUT MODEL.DETR.ENC_LAYERS MODEL.DETR.DEC_LAYERS MODEL.DETR.POSITION_TEMPERATURE
MODEL.DETR.CLASS_WEIGHT MODEL.DETR.L1_WEIGHT MODEL.DETR.GIOU_WEIGHT MODEL.DETR.CLASS_COST
MODEL.DETR.L1_COST MODEL.DETR.GIOU_COST MODEL.DETR.DENOISING.NUM_QUERIES
MODEL.DETR.PROJECTION_NORM MODEL.DETR.SAM.SMCA MODEL.DETR.EXTRA_LEVELS
MODEL.DETR.POSITION_OFFSET MODEL.DETR.RECOMPUTE
MODEL.DETR.NUM_POINTS MODEL.DETR.BOX_REFINE MODEL.DETR.TWO_STAGE
MODEL.SWIN.EMBED_DIM MODEL.SWIN.DEPTHS MODEL.SWIN.NUM_HEADS MODEL.SWIN.WINDOW_SIZE
MODEL.SWIN.DROP_PATH_RATE SOLVER.SLOW_NAMES
MODEL.DETR.DENOISING.LABEL_NOISE MODEL.DETR.DENOISING.BOX_NOISE MODEL.SMALL_RESNET.CHANNELS
MODEL.FREEZE MODEL.LOAD_ONLY MODEL.DETR.JOINT_SELF_ATTENTION MODEL.DETR.MATCHES_PER_TARGET
MODEL.COMPILE MODEL.EMA.ENABLED MODEL.EMA.DECAY SOLVER.ACCUMULATE_STEPS SOLVER.EPOCHS
MODEL.EMA.RAMP SOLVER.SHARDING
SOLVER.REFERENCE_BATCH SOLVER.PATIENCE SOLVER.KEEP_CHECKPOINTS SOLVER.ON_NONFINITE
SOLVER.NONFINITE_BUDGET
DATALOADER.ON_ERROR DATALOADER.MAX_SKIPPED TEST.AUG.SCALES TEST.AUG.FUSION
SOLVER.OPTIMIZER SOLVER.BACKBONE_MULTIPLIER SOLVER.AMP.DTYPE INPUT.CROP.MIN_SIZE
DATASETS.CUSTOM.TRAIN_JSON DATASETS.CUSTOM.TRAIN_IMAGES DATASETS.CUSTOM.VAL_JSON
DATASETS.CUSTOM.VAL_IMAGES DATASETS.CUSTOM.BAD_BOXES DATASETS.SHAPES.NUM_TRAIN
DATASETS.SHAPES.NUM_VAL DATASETS.SHAPES.IMAGE_SIZE DATASETS.SHAPES.MAX_OBJECTS
DATASETS.SHAPES.CLASSES
MODEL.DETR.MASK_WEIGHT MODEL.DETR.DICE_WEIGHT MODEL.DETR.NO_OBJECT_WEIGHT MODEL.DETR.MASK_COST
MODEL.DETR.DICE_COST MODEL.DETR.TRAIN_NUM_POINTS MODEL.DETR.OVERSAMPLE_RATIO
MODEL.DETR.IMPORTANCE_SAMPLE_RATIO MODEL.DETR.SIZE_DIVISIBILITY SOLVER.WEIGHT_DECAY_EMBED
INPUT.IMAGE_SIZE INPUT.MIN_SCALE INPUT.MAX_SCALE INPUT.GRID_MASK INPUT.VIEWS.SIZE
INPUT.VIEWS.SCALES INPUT.VIEWS.ROTATION INPUT.VIEWS.SPACE_SCALES INPUT.VIEWS.EARLIER
INPUT.VIEWS.FRAME_SECONDS TEST.LOSS
MODEL.DETR.SPACE.BOX_RANGE MODEL.DETR.SPACE.POSITION_RANGE MODEL.DETR.SPACE.NUM_DEPTHS
MODEL.DETR.SPACE.FIRST_DEPTH MODEL.DETR.SPACE.QUERY_SPREAD
MODEL.DETR.VELOCITY_WEIGHT MODEL.VOVNET.STEM_CHANNELS
MODEL.VOVNET.CONV_CHANNELS MODEL.VOVNET.OUT_CHANNELS MODEL.VOVNET.BLOCKS MODEL.VOVNET.NUM_LAYERS
DATASETS.CUBES.TRAIN_SCENES DATASETS.CUBES.VAL_SCENES DATASETS.CUBES.KEYFRAMES
DATASETS.CUBES.SWEEPS DATASETS.CUBES.WIDTH DATASETS.CUBES.HEIGHT DATASETS.CUBES.OBJECTS
DATASETS.CUBES.FAR DATASETS.CUBES.NEAR TEST.IMS_PER_BATCH LOGGERS
MODEL.VIT.EMBED_DIM MODEL.VIT.DEPTH MODEL.VIT.NUM_HEADS MODEL.VIT.PATCH_SIZE MODEL.VIT.WINDOW_SIZE
MODEL.VIT.GLOBAL_BLOCKS MODEL.VIT.DROP_PATH_RATE MODEL.VIT.ABSOLUTE_POSITION
MODEL.VIT.PRETRAIN_GRID MODEL.VIT.RELATIVE_POSITION MODEL.VIT.RELATIVE_GRID MODEL.VIT.LAYER_SCALE
MODEL.VIT.PYRAMID_CHANNELS MODEL.TRANSFORMERS.NAME MODEL.TRANSFORMERS.CONFIG
SOLVER.LAYER_DECAY SOLVER.COMPONENT_DECAY SOLVER.COMPONENTS
SOLVER.COMPONENT_POWERS SOLVER.NO_DECAY SOLVER.NO_DECAY_IN
""".split()


def leaves(cfg, prefix=""):
    found = set()
    for key, value in cfg.items():
        is_node = isinstance(value, CfgNode)
        found |= leaves(value, f"{prefix}{key}.") if is_node else {prefix + key}
    return found


def part_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def test_configuration_keys_change_with_intent_only():
    ours = get_cfg()
    add_groupdetr_config(ours)
    assert leaves(ours) - leaves(get_cfg()) == set(KEYS)


def test_every_key_is_commented():
    files = [PACKAGE / "config" / f"{name}.py" for name in ("keys", "data_keys")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    commented = False
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            commented = True
        elif not stripped:
            commented = False
        key = re.match(r"cfg\.([\w.]+) = (?!CN)", stripped)
        if key:
            assert commented, line
            commented = False


def imported_parts(path):
    """The parts of the package that a file imports from, at any depth of its code."""
    package = ["groupdetr_d2", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module.split(".") if node.module else ())]
            if names[0] == "groupdetr_d2":  # `from . import a` names parts at the top alone
                yield from [names[1]] if names[1:] else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = ORDER.index(part_of(path))
    for imported in imported_parts(path):
        assert ORDER.index(imported) <= own, imported
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and part_of(path) == "layers":
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            assert not any(name.startswith("detectron2") for name in names)


def test_an_import_that_points_up_is_seen():
    assert set(imported_parts(PACKAGE / "inference" / "predictor.py")) >= {"checkpoint", "modeling"}
    assert "data" in imported_parts(PACKAGE / "engine" / "reporting.py")  # inside a function


def names_in(path):
    """Everything that a file's code calls by a name."""
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


@pytest.mark.parametrize("name", MIDDLE)
def test_the_middle_names_no_boxes(name):
    assert not [x for x in names_in(PACKAGE / name) if "box" in x.lower()]


def test_a_task_is_one_value():
    """What is written of boxes in COCO's files and results is known to the task and its readers."""
    knowing = {p.relative_to(PACKAGE).as_posix() for p in FILES if '"bbox' in p.read_text()}
    readers = {f"data/{name}.py" for name in ("catalog", "checks", "coco_columns", "coco_rules")}
    writers = {f"evaluation/coco_{name}.py" for name in ("evaluator", "metrics", "results")}
    assert knowing == {"tasks/boxes.py", "evaluation/data_report.py", *readers, *writers}


@pytest.mark.parametrize("part", ["layers", "losses", "modeling", "variants"])
def test_cfg_is_read_by_builders_only(part):
    """Everything else can be built in a test from a few numbers."""
    for path in (PACKAGE / part).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                takes_cfg = any(a.arg == "cfg" for a in node.args.args)
                registered = any("register" in ast.unparse(d) for d in node.decorator_list)
                assert not takes_cfg or registered or READS_CFG.match(node.name), (path, node.name)


def test_k_lives_in_groups():
    """Elsewhere nothing compares, divides by or loops over the number of groups."""
    pattern = re.compile(
        r"(if|while|for|//|%|[<>]|[<>=!]=) *[a-z_.]*num_groups\b(?! *[,)=])"
        r"|num_groups *(//|%|[<>]|==|!=)"
    )
    for path in FILES:
        if path.name != "groups.py":
            hits = [line for line in path.read_text().splitlines() if pattern.search(line)]
            assert not hits, (path, hits)


def test_the_mode_chooses_groups_once():
    """`self.training` decides on dropout in layers, and on groups in the meta-architecture."""
    for path in FILES:
        for line in path.read_text().splitlines():
            if re.search(r"self\.training\b", line) and part_of(path) != "layers":
                allowed = "dropout" in line or path.name == "meta_arch.py"
                assert allowed, (path, line)


NO_SENTENCE = re.compile(r"^((Of|As|Where|What|How|Those|Beside|Also|For|From|Args|Raises)\b|\()")


def test_docstrings_are_sentences():
    """Each has a subject or a verb: neither "Of the model." nor "As they are." says anything."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                first = (ast.get_docstring(node) or "one two three").splitlines()[0]
                assert not NO_SENTENCE.match(first) and len(first.split()) > 2, (path, first)


def test_one_word_a_thing():
    """The glossary of docs/design.md."""
    others = re.compile(r"\b(barred|homeless|checkpointing=|looks: Looks|tgt|refpoint_embed)\b")
    for path in FILES:
        if path.parent.name != "checkpoint":  # converters name what others call things
            hits = [line for line in path.read_text().splitlines() if others.search(line)]
            assert not hits, (path, hits)


def test_files_and_functions_stay_readable():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno <= 50, (path, node.name)
        assert not re.search(r"TODO|FIXME|^ *print\(|# type: ignore", text, re.M), path
