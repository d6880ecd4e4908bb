"""The ONNX file gives what PyTorch gives, for any batch and image size."""

import functools
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from groupdetr_d2.commands import run as main
from groupdetr_d2.commands.export import OPSET
from groupdetr_d2.data.image_file import read_bgr
from groupdetr_d2.inference.export_contract import build_contract, write_metadata
from groupdetr_d2.inference.export_ladder import FileDetector
from groupdetr_d2.inference.exporting import TOLERANCES, build_plain_reader
from groupdetr_d2.inference.onnx_export import (
    Detector,
    ExportError,
    compare_with_file,
    compare_with_onnx,
    export_onnx,
    onnx_session,
    outputs_of,
)
from groupdetr_d2.modeling.two_stage import TwoStageQueries
from tests import ROOT
from tests.conftest import (
    DATA,
    MASK2FORMER,
    SHRINK,
    SMALL_BACKBONE,
    SMALL_MASK_BACKBONE,
    shared_folder,
    small_config,
    small_model,
)

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is a test extra")
pytest.importorskip("onnxscript", reason="onnxscript is a test extra")

SLOW = pytest.mark.slow
OPTIMIZED = ("conditional_detr", "dino", "mask2former")  # the others spare half the exporter's time
MODELS = {
    "conditional_detr": "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "dab_detr": "configs/DAB-DETR/dab_detr_R_50_12ep.yaml",
    "sam_detr": "configs/SAM-DETR/sam_detr_R_50_12ep.yaml",
    "deformable_detr": "configs/Deformable-DETR/deformable_detr_R_50_50ep.yaml",
    "dino": "configs/DINO/dino_4scale_R_50_12ep.yaml",
    "mask2former": MASK2FORMER,
}


def spread_model(config, num_groups=3):
    """With scores all over (0, 1), so that a mistake shows."""
    levels = SMALL_MASK_BACKBONE if config == MASK2FORMER else []
    model = small_model(num_groups, *levels, "MODEL.DETR.DEC_LAYERS", 2, config=config).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for head in model.head.predictor.class_heads:
            torch.nn.init.normal_(head.weight, std=0.5)
            head.bias.zero_()
        if hasattr(model.head.queries, "heads"):
            torch.nn.init.normal_(model.head.queries.heads.class_head.weight, std=0.5)
    return model


def leave_as_traced(patch):
    patch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, optimize=False))


@pytest.fixture(scope="module")
def export_model(tmp_path_factory):
    """A function from a model's name to the model and its file, which one worker writes."""

    @functools.cache
    def export(name):
        model, path = spread_model(MODELS[name]), shared_folder(tmp_path_factory) / name
        path = path / "model.onnx"
        with FileLock(path.parent.with_suffix(".lock")):
            if not path.exists():
                path.parent.mkdir()
                with pytest.MonkeyPatch.context() as patch:
                    if name not in OPTIMIZED:
                        leave_as_traced(patch)
                    export_onnx(model, path, (96, 128), dynamic=True, opset=OPSET)
        return model, path

    return export


def assert_same(model, path, images):
    assert compare_with_onnx(model, path, images.astype(np.float32)) == 1


def draw_images(model, shape, rng):
    """Images on which no two proposals of a first stage are so close that rounding ranks them."""
    select = TwoStageQueries.select
    while True:
        images = rng.integers(0, 256, shape).astype(np.float32)
        gaps = [torch.ones(1)]

        def record(scores, groups, gaps=gaps):
            best = scores.topk(groups.num_queries + 1, dim=-1).values
            gaps.append(-best.diff(dim=-1))
            return select(scores, groups)

        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(TwoStageQueries, "select", staticmethod(record))
            Detector(model)(torch.from_numpy(images))
        if min(gap.min() for gap in gaps) > 1e-3:
            return images


@pytest.mark.parametrize(
    "name",
    [m if m in ("conditional_detr", "dino") else pytest.param(m, marks=SLOW) for m in MODELS],
)
def test_same_detections_for_any_batch_and_image_size(name, export_model):
    """And on a real image, if there is one beside the repository."""
    model, path = export_model(name)
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 96, 128), (2, 96, 128), (3, 128, 91), (1, 65, 160)):
        assert_same(model, path, draw_images(model, (batch, 3, height, width), rng))
    for image in sorted((DATA / "coco").rglob("*.jpg"))[:1]:
        rgb = np.ascontiguousarray(read_bgr(image)[::2, ::2, ::-1].transpose(2, 0, 1))
        assert_same(model, path, rgb[None])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino", "mask2former"])
def test_two_stages_and_masks_in_lower_precision(name, export_model, tmp_path):
    from groupdetr_d2.inference.onnx_precision import CONVERTERS

    model, path = export_model(name)
    images = draw_images(model, (1, 3, 80, 117), np.random.default_rng(3))
    for precision, lowest in (("fp16", 0.9), ("int8", 0.5)):
        converted = tmp_path / f"{precision}.onnx"
        CONVERTERS[precision](path, converted)
        assert converted.stat().st_size < path.stat().st_size
        run = onnx_session(converted, outputs_of(model).names)
        more = {"tolerance": TOLERANCES[precision], "lowest": lowest}
        compare_with_file(model, converted, run, images, **more)


@pytest.mark.slow
def test_the_example_has_masks(export_model, tmp_path):
    """They are the file's, in the size of the image."""
    model, path = export_model("mask2former")
    cfg = small_config(MASK2FORMER, 3, "INPUT.MIN_SIZE_TEST", 64)
    names = [f"class {i}" for i in range(model.num_classes)]
    contract = build_contract(cfg, model, names, 0.0, None)
    copy = Path(shutil.copy(path, tmp_path))
    write_metadata(copy, contract.metadata("fp32"))
    example = runpy.run_path(str(ROOT / "examples" / "onnx_predict.py"))
    session = onnxruntime.InferenceSession(str(copy), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), np.uint8)
    found = example["detect"](session, image[:, :, ::-1])  # RGB
    _, inputs = build_plain_reader(cfg)(image)
    file = FileDetector(model, onnx_session(copy, outputs_of(model).names))
    expected = file(inputs)
    expected = expected[expected.pred_boxes.nonempty()]
    assert len(found) == len(expected) > 5
    for x, mask, score in zip(found, expected.pred_masks.numpy(), expected.scores, strict=True):
        assert x["score"] == pytest.approx(score.item()) and x["area"] == x["mask"].sum()
        both, either = (x["mask"] & mask).sum(), (x["mask"] | mask).sum()
        assert both >= 0.95 * either


FPN = [
    *(
        "MODEL.BACKBONE.NAME",
        "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES",
        ["res4", "res5"],
    ),
    *("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"], "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.DETR.IN_FEATURES", ["p5"], "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.FPN.NORM", ""),
    # few operations, which are what an export takes its time for
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.DETR.DEC_LAYERS", 1),
]


@pytest.mark.slow
def test_a_backbone_that_takes_multiples_alone_gets_them(tmp_path, monkeypatch):
    leave_as_traced(monkeypatch)
    model = small_model(2, *FPN, config=MODELS["conditional_detr"]).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 90, 117)).astype(np.float32)
    boxes, scores, _ = Detector(model)(torch.from_numpy(images))
    # inside: boxes are clipped in the graph, as in the model's detections
    found = model([{"image": torch.from_numpy(image)} for image in images])
    for b, x in enumerate(found):
        torch.testing.assert_close(x["instances"].scores, scores[b])
        torch.testing.assert_close(x["instances"].pred_boxes.tensor, boxes[b])
    export_onnx(model, tmp_path / "fpn.onnx", (90, 117), dynamic=True, opset=OPSET)
    for shape in (images.shape, (1, 3, 64, 131)):
        assert_same(model, tmp_path / "fpn.onnx", images[: shape[0], :, : shape[2], : shape[3]])


def test_the_file_of_another_model_is_an_error(export_model):
    _, path = export_model("conditional_detr")
    other = spread_model(MODELS["conditional_detr"])
    with torch.no_grad():
        for head in other.head.predictor.class_heads:
            head.bias.add_(1)
    images = np.zeros((1, 3, 96, 128), np.float32)
    with pytest.raises(ExportError, match="model.onnx gives other detections than PyTorch"):
        compare_with_onnx(other, path, images)
    other = spread_model(MODELS["dino"])
    with pytest.raises(ExportError, match="model.onnx gives 100 detections, the model 300"):
        compare_with_onnx(other, path, images)


@pytest.mark.slow
def test_the_command_says_what_is_inside(tmp_path, capsys):
    out = tmp_path / "folder" / "model.onnx"
    config = MODELS["conditional_detr"]
    opts = [str(x) for x in (*SHRINK, *SMALL_BACKBONE)]
    size = ["--image-size", "64", "96"]
    assert (
        main(["export", "--config-file", config, "--out", str(out), "--static", *size, *opts]) == 0
    )
    text = capsys.readouterr().out
    assert out.is_file() and f"opset {OPSET}" in text and "the primary group" in text
    assert "onnxruntime on random images (1, 3, 64, 96)" in text


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'groupdetr_d2\[export\]'"):
        export_onnx(small_model(), tmp_path / "m.onnx", (64, 64), dynamic=False, opset=OPSET)
