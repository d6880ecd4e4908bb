"""Any backbone of Detectron2's registry, at image sizes that it does not take as they are."""

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_model
from detectron2.modeling.backbone import MViT, RegNet, SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem
from detectron2.modeling.backbone.resnet import BasicStem

from groupdetr_d2 import model_zoo
from groupdetr_d2.engine.freezing import freeze
from groupdetr_d2.engine.train_step import check_gradients
from groupdetr_d2.errors import UserError
from tests.conftest import SHRINK, hide_timm, make_batch

SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.HIDDEN_DIM", 32),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", 12),
]


@BACKBONE_REGISTRY.register()
class OwnBackbone(Backbone):
    """Two convolutions; the sides of its images have to be multiples of 16."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.first = torch.nn.Conv2d(input_shape.channels, 12, 8, stride=8)
        self.second = torch.nn.Conv2d(12, 20, 2, stride=2)
        self._out_features = ["fine", "coarse"]
        self._out_feature_channels = {"fine": 12, "coarse": 20}
        self._out_feature_strides = {"fine": 8, "coarse": 16}

    @property
    def size_divisibility(self):
        return 16

    def forward(self, x):
        assert x.shape[2] % 16 == 0 and x.shape[3] % 16 == 0
        fine = self.first(x)
        return {"fine": fine, "coarse": self.second(fine)}


@BACKBONE_REGISTRY.register()
def regnet(cfg, input_shape):
    return RegNet(
        stem_class=SimpleStem, stem_width=8, block_class=ResBottleneckBlock, depth=6, w_a=8.0,
        w_0=8, w_m=2.0, group_width=8, norm="BN", out_features=["s1", "s2"], freeze_at=0,
    )  # fmt: skip


@BACKBONE_REGISTRY.register()
def mvit(cfg, input_shape):
    return MViT(
        img_size=64, embed_dim=8, num_heads=1, depth=4, last_block_indexes=(0, 1, 2, 3),
        out_features=("scale4", "scale5"), residual_pooling=True, drop_path_rate=0.0,
    )  # fmt: skip


@BACKBONE_REGISTRY.register()
def vit_pyramid(cfg, input_shape):
    vit = ViT(
        img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, window_size=3,
        window_block_indexes=(0,), use_rel_pos=True, out_feature="last_feat",
    )  # fmt: skip
    return SimpleFeaturePyramid(
        vit, "last_feat", 12, (1.0, 0.5), norm="LN", square_pad=cfg.INPUT.MAX_SIZE_TEST
    )


FPN = [
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
]
BACKBONES = {
    "build_resnet_fpn_backbone": ["p4", "p5"],
    "build_retinanet_resnet_fpn_backbone": ["p4", "p6"],
    "OwnBackbone": ["fine", "coarse"],
    "regnet": ["s1", "s2"],
    "mvit": ["scale4", "scale5"],
    "vit_pyramid": ["p4", "p5"],
    "build_swin_backbone": ["p1", "p3"],
}


def model_on(backbone, in_features, config="dab_deformable_detr_shapes"):
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*SMALL, *FPN, "MODEL.BACKBONE.NAME", backbone, *SWIN])
    cfg.MODEL.DETR.IN_FEATURES, cfg.MODEL.DETR.EXTRA_LEVELS = in_features, 0
    cfg.INPUT.MAX_SIZE_TEST = 128
    torch.manual_seed(0)
    return build_model(cfg)


SWIN = SHRINK[SHRINK.index("MODEL.SWIN.EMBED_DIM") : SHRINK.index("MODEL.DETR.DROPOUT")]


def test_a_package_that_a_backbone_needs_is_named(monkeypatch):
    hide_timm(monkeypatch)
    with pytest.raises(UserError, match="mvit: .*timm.*; pip install timm"):
        model_on("mvit", BACKBONES["mvit"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_at_odd_sizes(backbone):
    model = model_on(backbone, BACKBONES[backbone])
    odd = make_batch(sizes=((67, 93), (101, 66)), num_classes=6)
    losses = model(odd)
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None for p in model.head.parameters())
    with torch.no_grad():
        found = model.eval()(odd)
    assert [x["instances"].image_size for x in found] == [(67, 93), (101, 66)]


def test_padding_for_a_backbone_is_masked():
    """A padded image gives what the same image gives as a part of a larger batch."""
    model = model_on("OwnBackbone", ["coarse"], "conditional_detr_shapes").eval()
    small, large = make_batch(sizes=((50, 70), (100, 130)), num_classes=6)
    with torch.no_grad():
        alone, together = model([small])[0], model([small, large])[0]
    torch.testing.assert_close(alone["instances"].scores, together["instances"].scores)


@pytest.mark.parametrize(
    ("backbone", "names", "message"),
    [
        (
            "build_resnet_fpn_backbone",
            ["p3", "p9"],
            "has p9, but build_resnet_fpn_backbone returns",
        ),
        (
            "build_swin_backbone",
            ["res4"],
            "has res4, but build_swin_backbone returns p0, p1, p2, p3",
        ),
        (
            "OwnBackbone",
            ["coarse", "fine"],
            r"have strides \[16, 8\]: list them from fine to coarse",
        ),
        ("OwnBackbone", [], "has nothing, but OwnBackbone returns fine, coarse"),
    ],
)
def test_wrong_features_name_what_there_is(backbone, names, message):
    with pytest.raises(UserError, match=message):
        model_on(backbone, names)


def test_an_image_larger_than_the_square_is_refused():
    model = model_on("vit_pyramid", BACKBONES["vit_pyramid"])
    with pytest.raises(
        UserError, match="side of 130 pixels, and the backbone takes squares of 128"
    ):
        model(make_batch(counts=(1,), sizes=((130, 64),), num_classes=6))


def test_parameters_that_nothing_reads_are_named(package_log):
    model = model_on("build_resnet_fpn_backbone", ["p4", "p5"])
    sum(model(make_batch(num_classes=6)).values()).backward()
    check_gradients(model, is_alone=True)
    assert "backbone.fpn_lateral3.weight for one" in package_log.text
    assert (
        "\"['backbone.fpn_lateral3.*', 'backbone.fpn_output3.*']\" leaves them" in package_log.text
    )
    with pytest.raises(UserError, match="4 parameters have no gradient"):
        check_gradients(model, is_alone=False)
    freeze(model, ["backbone.fpn_lateral3.*", "backbone.fpn_output3.*"])
    check_gradients(model, is_alone=False)


def test_a_small_resnet_keeps_channels_last_and_computes_what_a_resnet_does():
    cfg = model_zoo.get_config("quick_start/conditional_detr_shapes.yaml")
    backbone = build_backbone(cfg)
    images = torch.randn(2, 3, 64, 96)
    maps = backbone(images)
    assert maps["res4"].is_contiguous(memory_format=torch.channels_last)
    maps["res4"].square().mean().backward()
    gradients = [p.grad.clone() for p in backbone.parameters()]
    backbone.zero_grad()
    backbone.stem.__class__ = BasicStem  # that of Detectron2, the same weights
    plain = backbone(images)
    assert plain["res4"].is_contiguous()
    plain["res4"].square().mean().backward()
    torch.testing.assert_close(maps["res4"], plain["res4"], rtol=1e-4, atol=1e-5)
    for gradient, parameter in zip(gradients, backbone.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
