"""Exported files with their contract: precisions, metadata, the ladder, use without PyTorch."""

import json
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from groupdetr_d2 import Predictor
from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint.run_info import RunInfo
from groupdetr_d2.commands import run as main
from groupdetr_d2.commands.export import register_test_set
from groupdetr_d2.data.resize import ResizeShortestSide
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference.export_contract import build_contract
from groupdetr_d2.inference.export_ladder import (
    Candidate,
    FileDetector,
    Step,
    candidates_of,
    evaluate_candidates,
    ladder_table,
)
from groupdetr_d2.inference.exporting import build_plain_reader
from groupdetr_d2.inference.onnx_export import ExportError, onnx_session, outputs_of
from groupdetr_d2.tasks.boxes import BOXES, select_outputs
from groupdetr_d2.tasks.masks import MASKS
from tests import ROOT
from tests.conftest import randomize_heads, small_config

onnx = pytest.importorskip("onnx", reason="onnx is a test extra")
pytest.importorskip("onnxruntime", reason="onnxruntime is a test extra")
pytest.importorskip("onnxscript", reason="onnxscript is a test extra")

EXAMPLE = ROOT / "examples" / "onnx_predict.py"
PRECISIONS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
NAMES = ["circle", "ring", "square", "diamond", "triangle", "schön"]
SETTINGS = [
    *("MODEL.DETR.NUM_CLASSES", 6, "INPUT.MIN_SIZE_TEST", 48, "INPUT.MAX_SIZE_TEST", 70),
    *("INPUT.FORMAT", "BGR", "DATASETS.TRAIN", ("shapes_train",), "MODEL.DETR.DEC_LAYERS", 2),
    *("DATASETS.TEST", ("shapes_val",), "DATASETS.SHAPES.IMAGE_SIZE", 64),
    *("DATASETS.SHAPES.NUM_TRAIN", 2, "DATASETS.SHAPES.NUM_VAL", 3),
]
# in a new process: neither of these can be imported
WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "groupdetr_d2", "cv2", "scipy", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint, its files of every precision and what the command said, made once."""
    folder = tmp_path_factory.mktemp("exported")
    weights = write_checkpoint(folder)
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w+") as said:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        patch.setattr(sys, "stdout", said)
        arguments = ["--out", str(folder / "model.onnx"), "--image-size", "64", "80"]
        arguments += ["--precision", *PRECISIONS, "--evaluate", "--num-images", "2"]
        main(["export", "--weights", str(weights), *arguments])
    return folder


def write_checkpoint(folder):
    torch.manual_seed(0)
    cfg = small_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 3, *SETTINGS)
    model = build_model(cfg)
    randomize_heads(model)
    with torch.no_grad():
        for head in model.head.predictor.class_heads:
            torch.nn.init.normal_(head.weight, std=0.3)
    run = RunInfo(cfg)
    run.classes, run.threshold = NAMES, 0.25
    GroupCheckpointer(model, str(folder), run=run).save("model")
    return folder / "model.pth"


def metadata_of(path):
    return {x.key: x.value for x in onnx.load(path).metadata_props}


def test_a_file_carries_its_contract(exported):
    for precision, name in PRECISIONS.items():
        found = metadata_of(exported / name)
        assert found.pop("precision") == precision
        assert (found.pop("groupdetr_d2"), found.pop("task")) == ("1", "bbox")
        found = {key: json.loads(text) for key, text in found.items()}
        assert found["class_names"] == NAMES and found["score_threshold"] == 0.25
        assert found["resize"] == {"rule": "shorter side", "min_size": 48, "max_size": 70}
        assert found["input"]["channels"] == "BGR" and found["input"]["dtype"] == "float32"
        assert found["normalisation"]["inside"] is True
        shapes = {x["name"]: (x["dtype"], x["shape"]) for x in found["outputs"]}
        assert shapes["boxes"] == ("float32", ["batch", 36, 4])  # 6 queries of 6 classes


def test_what_the_contract_says_of_outputs_is_what_comes(exported):
    for name in PRECISIONS.values():
        outputs = json.loads(metadata_of(exported / name)["outputs"])
        run = onnx_session(exported / name, [x["name"] for x in outputs])
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 70)).astype(np.float32)
        found = run(images)
        for x, value in zip(outputs, found, strict=True):
            assert value.shape == (2, *x["shape"][1:]) and value.dtype == x["dtype"]
        boxes, scores, labels = found
        assert boxes.min() >= 0 and (boxes <= [70, 50, 70, 50]).all()
        assert (np.diff(scores) <= 0).all() and set(labels.flat) <= set(range(6))


def test_lower_precisions_are_smaller_and_near(exported):
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 80)).astype(np.float32)
    names = BOXES.exported.names
    full = onnx_session(exported / "model.onnx", names)(images)
    sizes = [(exported / name).stat().st_size for name in PRECISIONS.values()]
    assert sizes == sorted(sizes, reverse=True)
    for name, largest in (("model.fp16.onnx", 2e-3), ("model.int8.onnx", 0.1)):
        scores = onnx_session(exported / name, names)(images)[1]
        assert 0 < np.abs(scores - full[1]).max() < largest
    kinds = {x.data_type for x in onnx.load(exported / "model.int8.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    half = onnx.load(exported / "model.fp16.onnx").graph
    weights = {x.name: x.data_type for x in half.initializer}
    products = [n for n in half.node if n.op_type == "Conv"]
    assert {weights[n.input[1]] for n in products} == {onnx.TensorProto.FLOAT16}


def test_the_command_prints_contents_comparison_and_ladder(exported):
    said = (exported / "said.txt").read_text()
    assert "BGR, 0 .. 255" in said and "shorter side to 48, longer side at most 70" in said
    assert "boxes float32 (batch, 36, 4): x1 y1 x2 y2" in said
    for precision, name in PRECISIONS.items():
        assert f"{name}: {precision}, opset 20" in said
        assert f"{name}: onnxruntime on random images (3, 3, 96, 64)" in said
    table = said[said.index("on shapes_val:") :].splitlines()
    assert table[1].split() == ["AP", "AP50", "difference", "MiB", "ms", "per", "image"]
    assert [line.split()[0] for line in table[2:]] == ["PyTorch", *PRECISIONS.values()]
    pytorch, full = (line.split() for line in table[2:4])
    assert full[1:4] == pytorch[1:4] and float(full[4]) > 0 and float(full[5]) > 0
    assert not list(exported.glob(".unfinished*"))


def test_the_example_needs_onnxruntime_and_numpy_alone(exported, tmp_path):
    """And gives what `Predictor` gives, for a picture that is turned and made smaller."""
    picture = np.random.default_rng(3).integers(0, 256, (95, 140, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cv2.blur(picture, (9, 9))).save(tmp_path / "a.png", exif=exif)
    code = [sys.executable, "-c", WITHOUT, EXAMPLE, exported / "model.onnx", tmp_path / "a.png"]
    done = subprocess.run(list(map(str, code)), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictor(exported / "model.pth")(tmp_path / "a.png").records()
    assert len(expected) > 3 and [x["class"] for x in found] == [x["class"] for x in expected]
    for key, largest in (("score", 1e-4), ("box", 0.05)):
        values = ([x[key] for x in records] for records in (found, expected))
        np.testing.assert_allclose(*values, atol=largest, rtol=0)


def test_the_resizing_of_the_example_is_that_of_predictor():
    """Byte for byte, whatever the shapes."""
    example = runpy.run_path(str(EXAMPLE))
    rng = np.random.default_rng(0)
    rules = rng.integers(1, 90, (40, 2)).tolist()
    shapes = [*rng.integers(1, 90, (39, 2)).tolist(), (230, 2)]
    for (smallest, largest), shape in zip(rules, shapes, strict=True):
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        expected = ResizeShortestSide(smallest, largest).get_transform(image).apply_image(image)
        rule = {"rule": "shorter side", "min_size": smallest, "max_size": largest}
        size = example["input_size"](*shape, rule)
        assert np.array_equal(example["resize"](image, size), expected), (shape, size)
    assert example["input_size"](50, 60, {"rule": "shorter side", "min_size": 0}) == (50, 60)
    exact = {"rule": "exact", "height": 7, "width": 9}
    assert example["input_size"](50, 60, exact) == (7, 9)


def test_a_file_of_one_size_says_so():
    cfg = small_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 2)
    found = build_contract(cfg, build_model(cfg), ["a"] * 80, None, (64, 96)).metadata("fp32")
    assert json.loads(found["resize"]) == {"rule": "exact", "height": 64, "width": 96}
    assert json.loads(found["input"])["shape"] == [1, 3, 64, 96]
    assert found["score_threshold"] == "0.5"


def test_a_file_detects_as_the_model_does(exported, monkeypatch):
    """In the size of the image, through the reader that evaluation uses."""
    predictor = Predictor(exported / "model.pth", threshold=0.0)
    model = predictor.model
    file = FileDetector(model, onnx_session(exported / "model.onnx", outputs_of(model).names))
    image = np.random.default_rng(5).integers(0, 256, (90, 61, 3), np.uint8)
    _, inputs = build_plain_reader(predictor.cfg)(image)
    found, expected = file(inputs), predictor(image).instances
    assert found.image_size == (90, 61)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    boxes = found.pred_boxes.tensor
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor, atol=0.05, rtol=0)
    fixed = candidates_of(
        model, [exported / "model.onnx"], build_plain_reader(predictor.cfg), (32, 48)
    )
    shapes = [tuple(x.reader(image)[1]["image"].shape[1:]) for x in fixed]
    assert shapes == [(70, 47), (32, 48)] and fixed[0].size is None and fixed[1].size > 1000


class Truth:
    """Detects what is there, with the right classes or with others."""

    def __init__(self, annotations, is_right):
        self.annotations, self.shift = annotations, 0 if is_right else 1

    def __call__(self, inputs):
        objects = next(self.annotations)["annotations"]
        boxes = torch.tensor([x["bbox"] for x in objects]).reshape(-1, 4)
        found = Instances((inputs["height"], inputs["width"]))
        found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([(x["category_id"] + self.shift) % 6 for x in objects])
        return found


def test_the_ladder_is_the_evaluators(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = small_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 1, *SETTINGS)
    register_test_set(cfg)
    truth = BOXES.data.images_of("shapes_val", is_evaluated=True)
    reader = build_plain_reader(cfg)
    candidates = [
        Candidate(str(is_right), size, reader, lambda r=is_right: Truth(iter(truth), r))
        for is_right, size in ((True, None), (False, 3 * 2**20))
    ]
    for number in (None, 2):
        steps = evaluate_candidates(cfg, BOXES, candidates, number)
        assert [round(step.metrics["AP"]) for step in steps] == [100, 0]
    lines = ladder_table([Step("a", None, {"AP": 50.0}, 0.01), *steps], ["AP"]).splitlines()
    assert lines[1].split() == ["a", "50.00", "+0.00", "10.0"]
    assert lines[3].split()[:4] == ["False", "0.00", "-50.00", "3.0"]
    cfg.DATASETS.TEST = ()
    with pytest.raises(UserError, match="--evaluate has no test set: name one"):
        evaluate_candidates(cfg, BOXES, candidates, None)


def test_boxes_end_at_the_edges_in_the_graph():
    from groupdetr_d2.losses.box2d import BoxPredictions

    boxes = torch.tensor([[[0.1, 0.5, 0.6, 0.2], [0.9, 0.9, 0.4, 0.6]]])[None]
    predictions = BoxPredictions(torch.zeros(1, 1, 2, 1), boxes)
    found, _, _ = select_outputs(predictions, (50, 100), 2)
    expected = torch.tensor([[[0, 20, 40, 30], [70, 30, 100, 50]]]).float()
    torch.testing.assert_close(found, expected)


def test_masks_of_a_file_become_those_of_an_image():
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, 2:6, 4:] = 1
    outputs = [masks, np.zeros((2, 4), np.float32), np.float32([0.9, 0.1]), np.int64([3, 1])]
    found = MASKS.exported.instances(outputs, (8, 8), (16, 24))
    assert found.pred_masks.shape == (2, 16, 24) and found.pred_masks[0, 4:12, 12:].all()
    assert found.pred_masks.sum() == 8 * 12
    assert found.pred_boxes.tensor.tolist() == [[12, 4, 24, 12], [0, 0, 0, 0]]


def test_what_cannot_be_exported_is_said_at_once(exported, capsys):
    weights = ["export", "--weights", str(exported / "model.pth"), "--out", "model.pt"]
    with pytest.raises(SystemExit, match="--precision fp8 is unknown; it can be fp32, fp16, int8"):
        main([*weights, "--precision", "fp8"])
    with pytest.raises(SystemExit, match="--num-images is 0; it has to be 1 or more"):
        main([*weights, "--evaluate", "--num-images", "0"])
    with pytest.raises(SystemExit, match="--image-size is .* a height and a width"):
        main([*weights, "--image-size", "0", "64"])
    for out, reason in ((exported, "is a folder"), (exported / "model.pth/a", "cannot be written")):
        with pytest.raises(SystemExit, match=f"--out .* {reason}"):
            main([*weights[:-1], str(out)])


def test_openvino_is_an_extra(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    weights = ["export", "--weights", str(exported / "model.pth"), "--out", "model.onnx"]
    with pytest.raises(SystemExit, match="--openvino needs OpenVINO .*: pip install openvino"):
        main([*weights, "--openvino"])


def test_openvino_gives_what_onnxruntime_gives(exported, tmp_path):
    pytest.importorskip("openvino", reason="openvino is an extra")
    from groupdetr_d2.inference.openvino_export import openvino_session, write_openvino

    images = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 80)).astype(np.float32)
    for precision, largest in (("fp32", 1e-4), ("fp16", 2e-3), ("int8", 0.1)):
        source, target = exported / PRECISIONS[precision], tmp_path / f"{precision}.xml"
        write_openvino(source, target, metadata_of(source))
        names = BOXES.exported.names
        found = openvino_session(target, names)(images)
        expected = onnx_session(source, names)(images)
        np.testing.assert_allclose(found[1], expected[1], atol=largest)
        assert "schön" in target.read_text("utf-8") and "score_threshold" in target.read_text()


def test_a_file_that_openvino_cannot_read_is_named(tmp_path):
    pytest.importorskip("openvino", reason="openvino is an extra")
    from groupdetr_d2.inference.openvino_export import write_openvino

    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="OpenVINO cannot convert .*a.onnx"):
        write_openvino(tmp_path / "a.onnx", tmp_path / "a.xml", {})
