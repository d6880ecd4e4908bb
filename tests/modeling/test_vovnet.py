import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.modeling.vovnet import FixedStatisticsNorm, VoVNet
from tests.conftest import ROOT

SMALL = {
    "stem_channels": 8,
    "conv_channels": [8, 8, 8, 8],
    "out_channels": [16, 24, 32, 40],
    "blocks": [1, 2, 1, 1],
    "num_layers": 2,
}


@pytest.mark.parametrize("name, number", [("petr", 81_664_736), ("petrv2", 85_116_740)])
def test_numbers_of_parameters(name, number):
    """Those of the official models, their backbone's 69,523,520 among them; and its maps."""
    config = str(ROOT / f"configs/PETR/{name}_V2_99_800x320_24ep.yaml")
    model = build_model(build_config(config, ["MODEL.DEVICE", "cpu"]))
    assert sum(p.numel() for p in model.backbone.parameters()) == 69_523_520
    assert sum(p.numel() for p in model.parameters()) == number
    maps = model.backbone.to("meta")(torch.empty(6, 3, 320, 800, device="meta"))
    shapes = {name: tuple(x.shape) for name, x in maps.items()}
    assert shapes == {"stage4": (6, 768, 20, 50), "stage5": (6, 1024, 10, 25)}


def test_sizes_are_rounded_up_between_stages():
    net = VoVNet(**SMALL, out_features=["stage2", "stage3", "stage4", "stage5"])
    found = net(torch.randn(1, 3, 44, 72))
    assert {k: tuple(x.shape[1:]) for k, x in found.items()} == {
        "stage2": (16, 11, 18),
        "stage3": (24, 5, 9),
        "stage4": (32, 2, 4),
        "stage5": (40, 1, 2),
    }
    assert [net.output_shape()[k].stride for k in found] == [4, 8, 16, 32]


def test_later_stages_are_not_built():
    net = VoVNet(**SMALL, out_features=["stage3"])
    assert list(net.stages) == ["stage2", "stage3"] and list(net(torch.randn(1, 3, 32, 32))) == [
        "stage3"
    ]


def test_statistics_stay_and_affine_parameters_are_trained():
    norm = FixedStatisticsNorm(3).train()
    before = norm.running_mean.clone()
    norm(torch.randn(2, 3, 4, 4) + 5).sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None and norm.bias.grad.abs().sum() > 0


def test_computing_anew_gives_the_same_gradients():
    torch.manual_seed(0)
    net, images = VoVNet(**SMALL, out_features=["stage4"]), torch.randn(1, 3, 64, 64)
    grads = []
    for net.recompute in (False, True):
        net.zero_grad()
        net(images)["stage4"].square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("freeze_at, stages", [(0, 4), (1, 4), (3, 2)])
def test_the_first_stages_can_be_frozen(freeze_at, stages):
    net = VoVNet(**SMALL, out_features=["stage5"], freeze_at=freeze_at)
    trained = [k for k, x in net.stages.items() if next(x.parameters()).requires_grad]
    assert len(trained) == stages
    assert next(net.stem.parameters()).requires_grad == (freeze_at == 0)


def test_an_unknown_stage_is_named():
    config = str(ROOT / "configs/PETR/petr_V2_99_800x320_24ep.yaml")
    cfg = build_config(config, ["MODEL.DEVICE", "cpu", "MODEL.DETR.IN_FEATURES", ["res5"]])
    with pytest.raises(UserError, match="stage2, stage3, stage4, stage5"):
        build_model(cfg)
