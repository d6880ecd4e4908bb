import pytest
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.engine.rates import depth_of, layer_factor, rate_table, rates_of
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.errors import UserError
from tests.conftest import ROOT, SHRINK, small_model

VIT = "configs/DINO/dino_4scale_ViT_B_20ep.yaml"
RATES = ["SOLVER.BASE_LR", 1e-4, "SOLVER.BACKBONE_MULTIPLIER", 1.0]
PLAIN = ["SOLVER.LAYER_DECAY", 1.0, "SOLVER.COMPONENT_DECAY", 1.0, "SOLVER.NO_DECAY", []]


def vit_config(*opts):
    return build_config(str(ROOT / VIT), [*SHRINK, *PLAIN, *RATES, *opts])


def vit_model(cfg):
    return build_model(cfg)


@pytest.mark.parametrize(
    "decay, last, block_24, block_16, first, embeddings",
    [  # of 32 blocks, from the literature's formula to three digits
        (0.9, 0.9, 0.430, 0.185, 0.0343, 0.0309),
        (0.8, 0.8, 0.168, 0.0281, 7.9e-4, 6.3e-4),
        (0.7, 0.7, 0.0576, 0.00332, 1.1e-5, 7.8e-6),
    ],
)
def test_layer_decay_of_vit_huge(decay, last, block_24, block_16, first, embeddings):
    names = [f"backbone.net.blocks.{i}.attn.qkv.weight" for i in (31, 24, 16, 0)]
    found = [layer_factor(name, 32, decay) for name in names]
    assert found == pytest.approx([last, block_24, block_16, first], rel=2e-2)
    for name in ("backbone.net.pos_embed", "backbone.net.patch_embed.proj.bias"):
        assert layer_factor(name, 32, decay) == pytest.approx(decay**33, rel=1e-12)
        assert layer_factor(name, 32, decay) == pytest.approx(embeddings, rel=2e-2)
    for name in ("backbone.simfp_3.0.weight", "head.decoder.layers.0.norm.weight"):
        assert layer_factor(name, 32, decay) == 1


@pytest.mark.parametrize(
    "embedded, block",
    [
        ("embeddings.patch_embeddings.projection.bias", "encoder.layer.2.norm1.weight"),
        ("embeddings.register_tokens", "model.layer.2.layer_scale1.lambda1"),
        ("beit.embeddings.cls_token", "beit.layers.2.attention.q_proj.weight"),
        ("_backbone.model.pos_embed", "_backbone.model.blocks.2.attn.qkv.bias"),
        ("_backbone.model.reg_token", "_backbone.model.blocks.2.ls1.gamma"),
    ],
)
@pytest.mark.parametrize("prefix", ["backbone.net.model.", "backbone.model."])
def test_layer_decay_of_vits_of_transformers_and_timm(prefix, embedded, block):
    """DINOv2, DINOv3, BEiT, and two of timm, with a pyramid and with their own map."""
    assert depth_of([prefix + block, "head.decoder.layers.7.norm.weight"]) == 3
    assert layer_factor(prefix + embedded, 4, 0.5) == 0.5**5
    assert layer_factor(prefix + block, 4, 0.5) == 0.5**2


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.1.blocks.2.attn.qkv.weight",
        "backbone.model.swin.encoder.layers.1.blocks.2.attention.q_proj.weight",
        "backbone.net.model._backbone.layers_1.blocks.2.attn.qkv.weight",
        "backbone.model.encoder.stages.1.layers.2.pwconv1.weight",
        "backbone.model.encoder.stages.1.layers.2.layer.0.convolution.weight",
        "backbone.model._backbone.stages_1.blocks.2.mlp.fc1.weight",
        "backbone.net.model._backbone.blocks.2.0.conv_pw.weight",
        "backbone.res4.2.conv1.weight",
    ],
)
def test_blocks_in_stages_are_no_vit(name):
    """Swin, ConvNeXt, ResNets, and EfficientNet of timm."""
    depth = depth_of([name])
    assert depth == 0 and layer_factor(name, depth, 0.5) == 1


def test_parts_of_stages_beside_their_blocks_are_no_vit():
    """PVT v2's, and Swin's."""
    ends = ("patch_embedding.proj.weight", "blocks.0.mlp.dense1.weight", "downsample.norm.bias")
    names = [f"backbone.net.model.encoder.layers.{i}.{end}" for i in range(4) for end in ends]
    depth = depth_of(names)
    assert [layer_factor(name, depth, 0.5) for name in names] == [1] * 12


def test_norms_of_the_pyramid_are_norms():
    """Detectron2's norm of channels is none of PyTorch's."""
    cfg = vit_config("SOLVER.NO_DECAY", ["norm"], "SOLVER.NO_DECAY_IN", "backbone.")
    found = rates_of(cfg, vit_model(cfg))
    norms = [name for name in found if "simfp" in name and ".norm." in name]
    assert norms and all(found[name].weight_decay == 0 for name in norms)


def test_the_decays_compose():
    """Rates equal base x depth x component to 1e-6, for every component."""
    c, d, lr = 0.7, 0.8, 1e-4
    cfg = vit_config("SOLVER.COMPONENT_DECAY", c, "SOLVER.LAYER_DECAY", d)
    found = {name: rate.lr for name, rate in rates_of(cfg, vit_model(cfg)).items()}
    expected = {
        "backbone.net.pos_embed": d**3 * c**3,  # two blocks
        "backbone.net.patch_embed.": d**3 * c**3,
        "backbone.net.blocks.0.": d**2 * c**3,
        "backbone.net.blocks.1.": d * c**3,
        "backbone.simfp_3.": c**2,
        "head.neck.": c**2,
        "head.encoder.": c**2,
        "head.decoder.": c,
        "head.predictor.": 1,
        "head.queries.": 1,
        "head.denoising.": 1,
    }
    for begin, factor in expected.items():
        rates = [rate for name, rate in found.items() if name.startswith(begin)]
        assert rates, begin
        for rate in rates:
            assert rate == pytest.approx(lr * factor, rel=1e-6), begin


def test_lw_detrs_rule_can_be_written():
    """Encoder c^2 by layers, decoder c, all else the full rate, and its encoder's own rate."""
    opts = ["SOLVER.COMPONENT_DECAY", 0.7, "SOLVER.LAYER_DECAY", 0.8]
    opts += ["SOLVER.COMPONENTS", ["backbone.net", "head.decoder"]]
    opts += ["SOLVER.COMPONENT_POWERS", [2, 1], "SOLVER.BACKBONE_MULTIPLIER", 1.5]
    cfg = vit_config(*opts)
    found = {name: rate.lr for name, rate in rates_of(cfg, vit_model(cfg)).items()}
    assert found["backbone.net.blocks.1.norm1.bias"] == pytest.approx(1.5e-4 * 0.8 * 0.49)
    assert found["backbone.simfp_4.0.weight"] == pytest.approx(1.5e-4)
    for part, rate in (("decoder", 0.7e-4), ("encoder", 1e-4)):
        found_rates = {lr for name, lr in found.items() if name.startswith(f"head.{part}.")}
        assert list(found_rates) == [pytest.approx(rate)]


def test_every_parameter_is_in_one_optimizer_group_of_its_rate_and_decay():
    opts = ["SOLVER.LAYER_DECAY", 0.8, "SOLVER.COMPONENT_DECAY", 0.7, "SOLVER.NO_DECAY", ["norm"]]
    cfg = vit_config(*opts)
    model = vit_model(cfg)
    model.backbone.net.patch_embed.requires_grad_(False)
    rates, groups = rates_of(cfg, model), build_optimizer(cfg, model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    placed = [names[id(p)] for group in groups for p in group["params"]]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(placed) == sorted(trained) and len(set(placed)) == len(placed)
    assert len(groups) == len(set(rates.values()))
    for group in groups:
        for p in group["params"]:
            rate = rates[names[id(p)]]
            assert (rate.lr, rate.weight_decay) == (group["lr"], group["weight_decay"])


@pytest.mark.parametrize(
    "kinds, inside, expected",
    [
        (["norm"], "", {"backbone.net.blocks.0.norm1.weight", "head.encoder.layers.0.norm1.bias"}),
        (["bias"], "backbone.", {"backbone.net.blocks.0.attn.qkv.bias"}),
        (["position"], "", {"backbone.net.pos_embed", "backbone.net.blocks.1.attn.rel_pos_w"}),
        (["layer_scale"], "", {"backbone.net.blocks.0.gamma_1"}),
        (["embedding"], "", {"head.queries.content.weight"}),
    ],
)
def test_kinds_without_weight_decay(kinds, inside, expected):
    opts = ["SOLVER.NO_DECAY", kinds, "SOLVER.NO_DECAY_IN", inside, "MODEL.VIT.LAYER_SCALE", 0.1]
    cfg = vit_config(*opts)
    rates = rates_of(cfg, vit_model(cfg))
    free = {name for name, rate in rates.items() if rate.weight_decay == 0}
    assert free and all(name.startswith(inside) for name in free)
    assert {name for name in expected if name in rates} <= free
    assert "backbone.net.blocks.0.attn.qkv.weight" not in free
    kept = {rate.weight_decay for name, rate in rates.items() if name not in free}
    assert kept == {cfg.SOLVER.WEIGHT_DECAY}


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.NO_DECAY", ["nrom"]], "'nrom'; it takes norm"),
        (["SOLVER.NO_DECAY_IN", "bakcbone."], "no parameter begins so"),
        (["SOLVER.COMPONENT_POWERS", [1]], "each needs one"),
    ],
)
def test_mistakes_are_named(opts, message):
    cfg = vit_config(*opts)
    with pytest.raises(UserError, match=message):
        rates_of(cfg, vit_model(cfg))


def test_layer_decay_needs_a_vit():
    model = small_model(1)
    cfg = vit_config("SOLVER.LAYER_DECAY", 0.8)
    with pytest.raises(UserError, match="is for a ViT that is trained"):
        rates_of(cfg, model)


def test_the_table_has_every_parameter():
    cfg = vit_config("SOLVER.LAYER_DECAY", 0.5, "SOLVER.COMPONENT_DECAY", 0.5)
    model = vit_model(cfg)
    model.backbone.net.patch_embed.requires_grad_(False)
    lines = rate_table(cfg, model).splitlines()
    rows = {line[:22].strip(): line.split() for line in lines[2:]}
    assert {"backbone, block 0", "backbone, block 1", "backbone, pyramid", "head.decoder"} <= set(
        rows
    )
    assert float(rows["backbone, block 1"][-3]) == pytest.approx(1e-4 * 0.5 * 0.125)
    total = sum(float(line.split()[-1]) for line in lines[2:])
    assert total == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.02)
    assert any(line.split()[-3] == "0" for line in lines[2:])  # what is not trained


def test_the_order_of_groups_is_that_of_older_checkpoints():
    """Main rate first, then the backbone's; in each, the common decay first."""
    cfg = build_config(str(ROOT / VIT), [*SHRINK, *PLAIN, "SOLVER.BACKBONE_MULTIPLIER", 0.1])
    groups = build_optimizer(cfg, build_model(cfg)).param_groups
    assert [group["lr"] for group in groups] == [1e-4, pytest.approx(1e-5)]
