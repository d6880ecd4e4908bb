"""ImageNet backbones by the addresses of Detectron2 and torchvision, served on the loopback."""

import pickle
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.utils.file_io import Detectron2Handler, PathManager

from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer, torchvision_files
from groupdetr_d2.checkpoint.torchvision_files import address_of
from groupdetr_d2.errors import UserError
from tests.checkpoint.hub_server import serving
from tests.conftest import ROOT, SHRINK, build_config

NAME = "resnet50-0676ba61.pth"
CONFIG = str(ROOT / "configs/ConditionalDETR/conditional_detr_R_50_50ep.yaml")


@pytest.fixture(scope="module")
def resnet():
    """A torchvision ResNet-50 whose 3 x 3 convolutions are narrow."""
    torch.manual_seed(0)
    blocks = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(blocks, [3, 4, 6, 3], width_per_group=8, num_classes=5)
    return model.eval()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder; yields the folder and its address."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            """The test's output stays free of requests."""

    (tmp_path / "models").mkdir()
    with serving(Handler) as address:
        yield tmp_path / "models", f"{address}/models"


def load(weights):
    """Loads a model with that backbone."""
    opts = [*SHRINK, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    model = build_model(build_config(CONFIG, opts)).eval()
    checkpointer = GroupCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    states = {x for name, x in checkpointer.states.items() if name.startswith("backbone.")}
    assert states == {"loaded"}
    return model


def features(model, resnet):
    """The last feature map of both."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = torch.nn.Sequential(*list(resnet.children())[:-2])(image)
        return model.backbone(image)["res5"], theirs


@pytest.mark.parametrize("form", ["https", "torchvision", "detectron2"])
def test_a_backbone_is_fetched_and_computes_the_same(server, resnet, monkeypatch, form):
    folder, address = server
    if form == "detectron2":
        name = "R-50.pkl"
        arrays = {detectron2_name(k): x.numpy() for k, x in resnet.state_dict().items()}
        arrays = {key: x for key, x in arrays.items() if "num_batches" not in key}
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
        (folder / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{address}/")
        weights = f"detectron2://{name}"
    else:
        name = NAME
        torch.save(resnet.state_dict(), folder / name)
        monkeypatch.setattr(torchvision_files, "address_of", lambda name: f"{address}/{NAME}")
        weights = f"{address}/{name}" if form == "https" else "torchvision://resnet50"
    ours, theirs = features(load(weights), resnet)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    (folder / name).unlink()
    assert Path(PathManager.get_local_path(weights)).is_file()  # in the cache


def detectron2_name(key):
    """The name that the files of Detectron2's model zoo have."""
    for stage in range(1, 5):
        key = key.replace(f"layer{stage}.", f"res{stage + 1}.")
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for i in range(1, 4):
        key = key.replace(f"bn{i}", f"conv{i}.norm")
    return key if key.startswith(("res", "fc")) else f"stem.{key}"


def test_what_torchvision_names_is_found():
    prefix = "https://download.pytorch.org/models/"
    assert address_of("resnet50") == f"{prefix}{NAME}"  # that of DETR's official codes
    assert address_of("resnet50/IMAGENET1K_V2") == f"{prefix}resnet50-11ad3fa6.pth"
    with pytest.raises(UserError, match="no model resnet5; .* resnet50"):
        address_of("resnet5")
    with pytest.raises(UserError, match="weights IMAGENET1K_V1, IMAGENET1K_V2"):
        address_of("resnet50/V3")


def test_an_address_that_gives_nothing_is_named(server):
    _, address = server
    with pytest.raises(CheckpointError, match="gone.pth cannot be reached .*404"):
        load(f"{address}/gone.pth")
