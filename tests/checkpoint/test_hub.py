"""Weights of the Hugging Face hub in one step, from a hub on the loopback."""

import json
import logging
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2 import Predictor
from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer, hub_weights
from groupdetr_d2.checkpoint.checkpointer import read_content
from groupdetr_d2.checkpoint.fitting import NOISE
from groupdetr_d2.checkpoint.hub import FolderModel, HubModel, parse_address
from groupdetr_d2.checkpoint.hub_config import classes_of, describe
from groupdetr_d2.checkpoint.hub_weights import local_file
from groupdetr_d2.checkpoint.official import COCO_CATEGORY_IDS
from groupdetr_d2.checkpoint.silent_keys import warn_of_silent_keys
from groupdetr_d2.commands import run as main
from groupdetr_d2.commands.convert import SOURCES
from groupdetr_d2.config import build_config
from groupdetr_d2.config.files import config_folder
from groupdetr_d2.config.keys import all_keys
from groupdetr_d2.errors import UserError
from tests.checkpoint.hub_server import COMMIT, Hub, handler_of, serving
from tests.conftest import ROOT

transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is an extra")
from huggingface_hub import constants  # noqa: E402  there if the line above is passed

from tests.checkpoint import hub_models as theirs  # noqa: E402  it needs transformers

THREE = ("stage2", "stage3", "stage4")
REFINED = {"with_box_refine": True}
TWO_STAGES = {**REFINED, "two_stage": True, "two_stage_num_proposals": 9}
MODELS = {
    "conditional": lambda: theirs.build("ConditionalDetr"),
    "dab": lambda: theirs.build("DabDetr", temperature_height=10, temperature_width=10),
    "deformable": lambda: theirs.build("DeformableDetr", THREE),
    "refined": lambda: theirs.build("DeformableDetr", THREE, **REFINED),
    "two-stage": lambda: theirs.build("DeformableDetr", THREE, **TWO_STAGES),
    "single-scale": lambda: theirs.build("DeformableDetr", num_feature_levels=1),
    "masks": theirs.build_mask2former,
}
ADDRESS = "hf://owner/conditional"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns the model of a name, and the folder that it is written to."""
    known = {}

    def get(name):
        if name not in known:
            model = MODELS[name]()
            known[name] = model, theirs.write(model, tmp_path_factory.mktemp(name))
        return known[name]

    return get


def set_endpoint(monkeypatch, address):
    """Does what HF_ENDPOINT does before huggingface_hub is imported."""
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    with serving(handler_of(hub)) as hub.endpoint:
        set_endpoint(monkeypatch, hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("GROUPDETR_CACHE", str(tmp_path / "ours"))
        yield hub


@pytest.fixture
def folder(written, tmp_path):
    """A copy of Conditional DETR that a test may change."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in written("conditional")[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture(scope="module")
def plain(written, tmp_path_factory):
    """The converted checkpoint of Conditional DETR."""
    out = str(tmp_path_factory.mktemp("plain") / "ours.pth")
    hub_weights.convert(FolderModel(written("conditional")[1]), out)
    return torch.load(out)


@pytest.fixture
def image():
    height, width = theirs.IMAGE_SIZE
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def their_outputs(model, image):
    """Logits of COCO's classes (N, 80) and boxes (N, 4) of an image (H, W, 3) BGR."""
    pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        found = model(pixel_values=(pixels - mean) / std)
    return found.logits[0][:, COCO_CATEGORY_IDS], found.pred_boxes[0]


@pytest.mark.parametrize("name", ["conditional", "dab"])
def test_the_predictor_detects_what_transformers_does(hub, written, image, name):
    model, folder = written(name)
    hub.add(f"owner/{name}", folder)
    predictor = Predictor(f"hf://owner/{name}", threshold=0.0, opts=["MODEL.DEVICE", "cpu"])
    found = predictor(image).instances
    logits, boxes = their_outputs(model, image)
    with torch.no_grad():  # scores hide small differences
        own = predictor.model.predict([predictor.prepare(image)[1]], predictor.model.groups)
    torch.testing.assert_close(own.logits[-1][0], logits, atol=2e-5, rtol=0)
    assert predictor.names == theirs.COCO and len(found) >= 100
    assert predictor.cfg.MODEL.DETR.POSITION_TEMPERATURE == {"dab": 10}.get(name, 10000)
    assert logits.std() > 0.05 and boxes.std() > 0.05
    height, width = theirs.IMAGE_SIZE
    size = torch.tensor([width, height, width, height])
    center, extent = boxes.split(2, 1)
    corners = (torch.cat([center - extent / 2, center + extent / 2], 1).clamp(0, 1) * size).float()
    best = logits.sigmoid().flatten().topk(len(found)).values
    torch.testing.assert_close(found.scores, best, atol=1e-4, rtol=0)
    for label, score, box in zip(
        found.pred_classes, found.scores, found.pred_boxes.tensor, strict=True
    ):  # queries of the same score may be in any order
        score_error = (logits[:, label].sigmoid() - score).abs()
        box_error = (corners - box).abs().amax(1)
        assert ((score_error < 1e-4) & (box_error < 0.05)).any()


def convert_folder(folder, *opts):
    """Returns our model of a folder, and its class names."""
    out = str(folder / "ours.pth")
    hub_weights.convert(FolderModel(folder), out, opts=["MODEL.DEVICE", "cpu", *opts])
    content = torch.load(out)
    config = describe(json.loads((folder / "config.json").read_text()), None, "")
    yaml = str(config_folder() / config.config_file)
    model = build_model(build_config(yaml, [*config.opts, "MODEL.DEVICE", "cpu"])).eval()
    model.load_state_dict(content["model"])
    return model, content["run"]["classes"]


@pytest.mark.parametrize("name", ["deformable", "refined", "two-stage", "single-scale"])
def test_every_form_of_deformable_detr_has_equal_outputs(written, image, name):
    model, folder = written(name)
    ours, classes = convert_folder(folder)
    logits, boxes = their_outputs(model, image)
    pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        found = ours.predict([{"image": pixels}], ours.groups)
    assert classes == theirs.COCO and logits.std() > 0.05 and boxes.std() > 0.02
    torch.testing.assert_close(found.logits[-1][0], logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[-1][0], boxes, atol=1e-4, rtol=0)


def test_masks_of_mask2former_are_equal(written, image):
    """The logits of each query tell, since its masks steer the layers."""
    model, folder = written("masks")
    ours, classes = convert_folder(folder)
    pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
    batch = [{"image": pixels}]
    with torch.no_grad():
        expected = model(pixel_values=ours.preprocess_image(batch).tensor)
        found = ours.predict(batch, ours.groups)
    logits = expected.class_queries_logits
    assert classes == theirs.COCO and logits.std() > 0.05
    torch.testing.assert_close(found.logits[-1], logits, atol=1e-3, rtol=0)


def test_a_model_is_fetched_and_converted_once(hub, written, monkeypatch):
    hub.add("owner/conditional", written("conditional")[1])
    first = local_file(ADDRESS)
    assert f"/owner/conditional/resolve/{COMMIT}/model.safetensors" in " ".join(hub.asked)
    content = torch.load(first)
    assert content["run"]["origin"] == f"{ADDRESS}@{COMMIT}"
    monkeypatch.setattr(hub_weights, "convert", None)
    hub.asked.clear()
    assert local_file(ADDRESS) == local_file("hf:/owner/conditional") == first  # of a Path
    assert hub.asked == 2 * ["HEAD /owner/conditional/resolve/main/config.json"]
    assert local_file(f"{ADDRESS}@{COMMIT}") == first and len(hub.asked) == 2
    assert local_file(f"{ADDRESS}@v1") == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file(ADDRESS) == first


def test_a_damaged_copy_and_a_new_commit_are_converted_anew(hub, written):
    hub.add("owner/conditional", written("conditional")[1])
    first = local_file(ADDRESS)
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    assert local_file(ADDRESS) == first and len(torch.load(first)["model"]) > 300
    hub.commit = COMMIT[::-1]
    assert local_file(ADDRESS) != first
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".pth", ".pth"]  # nothing half done


@pytest.mark.parametrize("form", ["shards", "pickle", "timm"])
def test_every_form_of_weights_is_read(hub, written, plain, folder, form):
    model, expected = written("conditional")[0], plain["model"]
    state = model.state_dict()
    (folder / "model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="300KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif form == "timm":
        torch.save({timm_name(key): x for key, x in state.items()}, folder / "pytorch_model.bin")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    hub.add("owner/conditional", folder)
    found = torch.load(local_file(ADDRESS))["model"]
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def timm_name(key):
    """The name that files of older versions have, whose backbone is timm's."""
    body = "model.backbone.conv_encoder.model."
    key = key.replace("model.backbone.model.", body)
    key = key.replace(f"{body}embedder.embedder.convolution.", f"{body}conv1.")
    key = key.replace(f"{body}embedder.embedder.normalization.", f"{body}bn1.")
    for stage in range(4):
        key = key.replace(f"{body}encoder.stages.{stage}.layers.", f"{body}layer{stage + 1}.")
    for i in range(3):
        key = key.replace(f".layer.{i}.convolution.", f".conv{i + 1}.")
        key = key.replace(f".layer.{i}.normalization.", f".bn{i + 1}.")
    key = key.replace("shortcut.convolution.", "downsample.0.")
    return key.replace("shortcut.normalization.", "downsample.1.")


def test_a_pickle_that_would_run_code_is_refused(hub, folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    hub.add("owner/conditional", folder)
    with pytest.raises(CheckpointError, match="pytorch_model.bin cannot be read"):
        local_file(ADDRESS)


def test_parts_of_weights_lie_beside_their_index(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for name, said in (("../a.safetensors", "no part"), ("b.safetensors", "no b.safetensors")):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(CheckpointError, match=said):
            convert_folder(folder)


def test_without_a_network_the_place_of_the_file_is_named(hub, written, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf://owner/conditional: config.json") as caught:
        Predictor(ADDRESS)
    assert "cannot be reached (OfflineModeIsEnabled" in str(caught.value)
    place = HubModel(parse_address(ADDRESS)).place("config.json")
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)
    place.parent.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):  # by hand, where the sentence says
        with pytest.raises(CheckpointError, match=str(place.parent / name)):
            local_file(ADDRESS)
        (place.parent / name).write_bytes((written("conditional")[1] / name).read_bytes())
    assert len(torch.load(local_file(ADDRESS))["model"]) > 300


def test_what_was_fetched_is_used_without_a_network(hub, written, monkeypatch, caplog):
    hub.add("owner/conditional", written("conditional")[1])
    kept = local_file(ADDRESS)
    kept.unlink()
    set_endpoint(monkeypatch, "http://127.0.0.1:9")  # which refuses at once
    with caplog.at_level(logging.WARNING, "groupdetr_d2"):
        assert local_file(ADDRESS) == kept
    assert "127.0.0.1:9 cannot be reached" in caplog.text and "copy in the cache" in caplog.text


@pytest.mark.parametrize(
    "error, said",
    [
        ((403, "GatedRepo"), "gated: accept its terms on .*/owner/conditional, then log in"),
        ((401, "RepoNotFound"), "does not exist, or is private"),
        ((500, ""), "cannot be reached .HfHubHTTPError"),
        (None, "has no revision v2"),
    ],
)
def test_every_refusal_is_one_sentence(hub, written, error, said):
    hub.add("owner/conditional", written("conditional")[1])
    hub.errors |= {"owner/conditional": error} if error else {}
    with pytest.raises(CheckpointError, match=said) as caught:
        local_file(f"{ADDRESS}@v2")
    assert f"{ADDRESS}@v2: config.json" in str(caught.value)
    assert "snapshots/v2/config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_is_named(hub, folder):
    hub.add("owner/conditional", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors or pytorch_model.bin"):
        local_file(ADDRESS)
    (folder / "config.json").write_text("[]")
    hub.commit = COMMIT[::-1]
    with pytest.raises(CheckpointError, match="config.json holds no JSON object"):
        local_file(ADDRESS)
    (folder / "config.json").unlink()
    hub.commit = COMMIT.replace("0", "1")
    with pytest.raises(CheckpointError, match="owner/conditional has no config.json"):
        local_file(ADDRESS)


@pytest.mark.parametrize("text", ["hf://gpt2", "hf://a/b/c", "hf://a/..", "hf://a/b@", "hf:///a/b"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="hf://owner/name"):
        parse_address(text)
    assert str(parse_address("hf://a/b.c@refs/pr/1")) == "hf://a/b.c@refs/pr/1"


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'groupdetr_d2\[hub\]'"):
        local_file(ADDRESS)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "detr"}, "type 'detr'; those that can be converted are conditional_detr"),
        ({"architectures": ["ConditionalDetrForSegmentation"]}, "ForObjectDetection can be"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"decoder_ffn_dim": 40}, "encoder_ffn_dim is 48 and its decoder_ffn_dim 40"),
        ({"backbone_config": {"model_type": "swin"}}, "backbone is swin"),
        ({"backbone_config": None, "backbone": "resnet50d"}, "backbone is resnet50d"),
        ({"id2label": {"0": "N/A"}}, "names no class"),
        ({"num_queries": "many"}, "values of unexpected kinds"),
        ({"d_model": 64}, "Other shape: "),
        ({"encoder_layers": 0}, "tensors that have no place here, head.encoder"),
    ],
)
def test_what_models_here_cannot_be_is_named(folder, changes, said):
    theirs.change(folder, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        convert_folder(folder)
    assert str(folder) in str(caught.value)


def test_anchors_with_patterns_are_refused(written):
    config = json.loads((written("dab")[1] / "config.json").read_text())
    assert describe(config, None, "it").source == "hf-dab-detr"
    for key, value in {"num_patterns": 3, "temperature_width": 20, "query_dim": 2}.items():
        with pytest.raises(CheckpointError, match=key):
            describe(config | {key: value}, None, "it")
    with pytest.raises(CheckpointError, match="sine_position_embedding_scale is 1.0"):
        describe(config | {"sine_position_embedding_scale": 1.0}, None, "it")


def opts_of(config, preprocessor=None):
    opts = describe({"model_type": "deformable_detr", **config}, preprocessor, "it").opts
    return dict(zip(opts[::2], opts[1::2], strict=True))


def test_configurations_of_older_versions_are_read():
    """They name timm's backbone, and say the dilation beside it."""
    one = opts_of({"backbone": "resnet50", "dilation": True, "num_feature_levels": 1})
    assert one["MODEL.BACKBONE.NAME"] == "build_resnet_dc5_backbone"
    assert one["MODEL.DETR.IN_FEATURES"] == ["res5"] and one["MODEL.DETR.EXTRA_LEVELS"] == 0
    four = opts_of({"backbone": "resnet101", "two_stage": True, "with_box_refine": True})
    assert four["MODEL.RESNETS.DEPTH"] == 101 and "MODEL.BACKBONE.NAME" not in four
    assert four["MODEL.DETR.IN_FEATURES"] == ["res3", "res4", "res5"]
    assert four["MODEL.DETR.EXTRA_LEVELS"] == 1 and four["MODEL.DETR.TWO_STAGE"] == "objectness"
    new = {"model_type": "timm_backbone", "backbone": "resnet18.a1_in1k", "output_stride": 16}
    found = opts_of({"backbone_config": new})
    assert found["MODEL.RESNETS.RES2_OUT_CHANNELS"] == 64
    assert found["MODEL.BACKBONE.NAME"] == "build_resnet_dc5_backbone"


def test_the_size_of_images_is_read():
    old = opts_of({}, {"size": 600, "max_size": 1000, "image_mean": [0, 0.5, 1.0]})
    assert (old["INPUT.MIN_SIZE_TEST"], old["INPUT.MAX_SIZE_TEST"]) == (600, 1000)
    assert old["MODEL.PIXEL_MEAN"] == [0.0, 127.5, 255.0]
    fixed = opts_of({}, {"size": {"height": 480, "width": 640}, "do_normalize": False})
    assert (fixed["INPUT.MIN_SIZE_TEST"], fixed["INPUT.MAX_SIZE_TEST"]) == (480, 640)
    assert fixed["MODEL.PIXEL_STD"] == [255.0] * 3


def test_classes_keep_their_contiguous_ids():
    rows, num_rows, names = classes_of({"id2label": {str(k): x for k, x in theirs.LABELS.items()}})
    assert rows == COCO_CATEGORY_IDS and num_rows == 91 and names == theirs.COCO
    named = theirs.LABELS | {12: "street sign", 26: "hat", 0: "background"}
    assert classes_of({"id2label": named})[2] == theirs.COCO
    own = classes_of({"id2label": {"10": "k", "2": "c", "1": "N/A", "0": "a"}})
    assert own == ([0, 2, 10], 11, ["a", "c", "k"])
    assert classes_of({"num_labels": 3})[2] == ["0", "1", "2"]  # no names to be matched by


class Run:
    """A run's class names, as the trainer's checkpoints carry them."""

    def __init__(self, classes, cfg):
        self.classes, self.config = classes, cfg.dump()

    def state_dict(self):
        return {}


def test_fine_tuning_starts_from_the_weights(hub, written, caplog):
    """The primary group is the hub's, the others are near it, known classes keep their rows."""
    num_groups = 5
    hub.add("owner/dab", written("dab")[1])
    content = torch.load(local_file("hf://owner/dab"))
    before, classes = content["model"], ["helmet", "dog", "person"]
    described = describe(written("dab")[0].config.to_dict() | {"architectures": None}, None, "it")
    opts = [*described.opts, "MODEL.DETR.NUM_CLASSES", 3, "MODEL.DETR.NUM_GROUPS", num_groups]
    opts += ["MODEL.DEVICE", "cpu", "MODEL.DETR.POSITION_TEMPERATURE", 20]  # the yaml's own
    cfg = build_config(str(config_folder() / described.config_file), opts)
    model = build_model(cfg)
    checkpointer = GroupCheckpointer(model, run=Run(classes, cfg))
    checkpointer.load("hf://owner/dab", checkpointables=[])
    after = model.state_dict()
    bank, old = after["head.queries.bank.weight"], before["head.queries.bank.weight"]
    assert torch.equal(bank[:9], old) and len(bank) == 9 * num_groups
    for k in range(1, num_groups):
        change = (bank[9 * k : 9 * k + 9] - old).std() / old.std()
        assert 0.5 * NOISE < change < 2 * NOISE
    head = "head.predictor.class_heads.0.weight"
    assert torch.equal(after[head][1:], before[head][[16, 0]])  # dog and person
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    known = {head, head.replace("weight", "bias"), *(n for n in before if "queries.bank" in n)}
    assert changed <= known and checkpointer.unmatched == ["helmet"]
    warned = [x.message for x in caplog.records if x.name.endswith("silent_keys")]
    assert len(warned) == 1 and "To keep it: MODEL.DETR.POSITION_TEMPERATURE 10" in warned[0]


def test_configurations_that_are_none_are_passed_over(caplog):
    for text in (None, "", "[", "a", "MODEL: 3", "MODEL: {DETR: {NHEADS: }}"):
        warn_of_silent_keys(text, "MODEL: {DETR: {NHEADS: 8}}")
    assert not caplog.records


def test_the_command_needs_no_source(hub, written, tmp_path, capsys):
    model, folder = written("conditional")
    hub.add("owner/conditional", folder)
    out = tmp_path / "new.pth"
    assert main(["convert", ADDRESS, str(out), "MODEL.DEVICE", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "tensors of a conditional_detr, 80 classes" in printed and str(out) in printed
    assert torch.load(out)["run"]["classes"] == theirs.COCO
    with pytest.raises(SystemExit, match="give --source"):
        main(["convert", str(folder / "model.safetensors"), str(out)])


def test_the_page_of_weights_names_what_there_is():
    page = (ROOT / "docs/weights.md").read_text()
    sources = set(re.findall(r"--source ([a-z0-9-]+)", page))
    assert {x for x in SOURCES if not x.startswith("hf-")} == sources
    yamls = re.findall(r"[\w-]+/[\w-]+\.yaml", page)
    assert len(yamls) > 10 and all((config_folder() / x).is_file() for x in yamls)
    addresses = [x for x in re.findall(r"hf://[\w./-]+", page) if "/name" not in x]
    assert len({parse_address(x) for x in addresses}) == 12
    opts = re.findall(r'((?:MODEL|INPUT|SOLVER)\.[A-Z0-9_.]*[A-Z0-9]) (?:True|False|\d|")', page)
    assert {"MODEL.DETR.BOX_REFINE", "MODEL.RESNETS.DEPTH"} <= set(opts)
    assert set(opts) <= set(all_keys(build_config()))


def test_a_plain_vit_is_fetched_and_read_as_it_is(hub, tmp_path):
    """Loading it is a matter of test_vit_files.py."""
    config = theirs.transformers.ViTMAEConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": 32, "intermediate_size": 64},
    )
    theirs.transformers.ViTMAEModel(config).save_pretrained(tmp_path / "mae")
    hub.add("owner/mae", tmp_path / "mae")
    file = local_file("hf://owner/mae")
    assert file.name == "model.safetensors"
    content = read_content(str(file))
    assert content["model"]["backbone.net.pos_embed"].shape == (1, 4, 16)
    assert sorted(content["left_out"]) == sorted(
        [*("embeddings.cls_token", "layernorm.bias", "layernorm.weight")]
    )
