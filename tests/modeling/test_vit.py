import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.layers.relative_position import attend_on_grid, relative_positions, resize_table
from groupdetr_d2.modeling.backbone import padding_of
from groupdetr_d2.modeling.vit import ViT, ViTPyramid, image_of, windows_of
from tests.conftest import ROOT, SHRINK, make_image, randomize_heads

VIT_H = "configs/DINO/dino_4scale_ViT_H_20ep.yaml"
SMALL = {
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 4,
    "patch_size": 16,
    "window_size": 3,
    "global_blocks": [1, 3],
    "pretrain_grid": 6,
    "relative_grid": 4,
}
THEIR_NAMES = {
    "embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layer.": "blocks.",
    ".attention.": ".attn.",
}


def spread(module):
    """Parameters as large as those of a trained ViT, so that every part shows in the output."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.3)


def their_vit(numbers):
    """Hugging Face's VitDet of the same numbers, and its state in our names."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
    patch, depth = numbers["patch_size"], numbers["depth"]
    config = transformers.VitDetConfig(
        hidden_size=numbers["embed_dim"],
        num_hidden_layers=depth,
        num_attention_heads=numbers["num_heads"],
        mlp_ratio=4,
        image_size=patch * (numbers["relative_grid"] or 4),
        pretrain_image_size=patch * numbers["pretrain_grid"],
        patch_size=patch,
        window_size=numbers["window_size"],
        window_block_indices=[i for i in range(depth) if i not in numbers["global_blocks"]],
        use_relative_position_embeddings=bool(numbers["relative_grid"]),
        out_indices=[depth],
    )
    theirs = transformers.VitDetBackbone(config).eval()
    spread(theirs)
    state = {}
    for name, value in theirs.state_dict().items():
        for their, our in THEIR_NAMES.items():
            name = name.replace(their, our)
        state[name] = value[:, 1:] if name == "pos_embed" else value  # without the class token
    return theirs, state


@pytest.mark.parametrize(
    "size, changed",
    [
        ((96, 160), {}),
        ((112, 176), {"window_size": 4, "global_blocks": [3]}),
        ((70, 98), {"patch_size": 14}),
        ((64, 64), {"relative_grid": 0, "global_blocks": [0, 1, 2, 3]}),
        ((61, 83), {}),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_equals_hugging_faces(size, changed, recompute):
    """Features and gradients, with windows that do not fit, and positions that are resized."""
    numbers = {**SMALL, **changed}
    theirs, state = their_vit(numbers)
    net = ViT(**numbers, recompute=recompute)
    net.load_state_dict(state)
    theirs, net = theirs.double(), net.double()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    inputs = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected = theirs(inputs[0]).feature_maps[0]
    found = net(inputs[1])["last_feat"]
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    weights = torch.randn_like(expected)
    for features in (expected, found):
        (features * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-8, rtol=1e-8)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for name, p in theirs.named_parameters():
        for their, our in THEIR_NAMES.items():
            name = name.replace(their, our)
        expected = p.grad[:, 1:] if name == "pos_embed" else p.grad
        torch.testing.assert_close(gradients[name], expected, atol=1e-8, rtol=1e-8)


def test_relative_positions_equal_a_bias_of_the_logits():
    """In double precision, values and gradients."""
    torch.manual_seed(0)
    size, dim = (3, 5), 6
    q, k, v = (torch.randn(2, 2, 15, dim, dtype=torch.double) for _ in range(3))
    tables = [torch.randn(2 * n - 1, dim, dtype=torch.double) for n in (3, 4)]
    given = [x.requires_grad_() for x in (q, k, v, *tables)]
    rows, columns = (relative_positions(t, n) for t, n in zip(tables, size, strict=True))
    grid = q.unflatten(2, size)
    bias = (
        torch.einsum("bnhwd,hkd->bnhwk", grid, rows)[..., None]
        + torch.einsum("bnhwd,wkd->bnhwk", grid, columns)[..., None, :]
    )
    logits = q @ k.transpose(-1, -2) * dim**-0.5 + bias.flatten(-2).flatten(2, 3)
    expected = logits.softmax(-1) @ v
    found = attend_on_grid(q, k, v, size, *tables)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((expected * weights).sum(), given),
        torch.autograd.grad((found * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_windows_and_back():
    x = torch.arange(2 * 5 * 7.0).view(2, 5, 7, 1)
    windows, padded = windows_of(x, 3)
    assert padded == (6, 9) and windows.shape == (2 * 2 * 3, 3, 3, 1)
    assert torch.equal(windows[1, :, :, 0], x[0, :3, 3:6, 0])  # the second of the first row
    assert windows[5, 2].abs().sum() == 0  # below and right of the image
    assert torch.equal(image_of(windows, padded)[:, :5, :7], x)


def test_layer_scale_scales_both_halves():
    """Factors of zero leave patches and their positions alone."""
    net = ViT(**SMALL, layer_scale=0.1)
    spread(net)
    images = torch.randn(1, 3, 48, 48)
    expected = net.patch_embed(images) + resize_table(net.pos_embed, (3, 3))
    assert not torch.allclose(net(images)["last_feat"].permute(0, 2, 3, 1), expected)
    with torch.no_grad():
        for block in net.blocks:
            block.gamma_1.zero_()
            block.gamma_2.zero_()
    assert torch.equal(net(images)["last_feat"].permute(0, 2, 3, 1), expected)


def test_drop_path_grows_with_depth_and_is_of_training_alone():
    net = ViT(**SMALL, drop_path_rate=0.3)
    spread(net)
    assert [round(block.drop_path.p, 6) for block in net.blocks] == [0.0, 0.1, 0.2, 0.3]
    images = torch.randn(4, 3, 48, 48)
    for training in (True, False):
        net.train(training)
        once, again = net(images)["last_feat"], net(images)["last_feat"]
        assert torch.equal(once, again) != training


@pytest.mark.parametrize(
    "patch, levels, strides, multiple",
    [
        (16, ["p3", "p4", "p5", "p6"], [8, 16, 32, 64], 32),
        (14, ["p3", "p4", "p5", "p6"], [7, 14, 28, 56], 28),
        (16, ["p2", "p3", "p4"], [4, 8, 16], 16),
        (16, ["p5"], [32], 32),
    ],
)
def test_pyramid(patch, levels, strides, multiple):
    """Levels have the stated strides and sizes, and images the multiple that makes them exact."""
    net = ViT(**{**SMALL, "patch_size": patch})
    pyramid = ViTPyramid(net, levels, 32)
    assert [pyramid.output_shape()[x].stride for x in levels] == strides
    assert padding_of(pyramid) == (multiple, 0)
    size = (2 * multiple, 3 * multiple)
    for stride, found in zip(strides, pyramid(torch.randn(1, 3, *size)).values(), strict=True):
        assert found.shape == (1, 32, *(-(-side // stride) for side in size))


def test_the_size_of_vit_huge():
    """Parts as in the literature: 629.7 M in the blocks, 5.9 M in the pyramid."""
    with torch.device("meta"):
        model = build_model(build_config(str(ROOT / VIT_H), ["MODEL.DEVICE", "meta"]))
    net = model.backbone.net
    tables = [p for name, p in net.named_parameters() if "rel_pos" in name]
    assert sum(p.numel() for p in tables) == 4 * 2 * 127 * 80 + 28 * 2 * 27 * 80
    blocks = sum(p.numel() for p in net.blocks.parameters()) - sum(p.numel() for p in tables)
    assert blocks == 32 * (12 * 1280**2 + 13 * 1280) == 629_678_080
    assert sum(p.numel() for p in model.backbone.parameters()) - numel(net) == 5_869_184
    assert numel(model) == 655_117_352  # 660.4 M with the projections of a ResNet-50, unused here


def numel(module):
    return sum(p.numel() for p in module.parameters())


def test_only_images_of_one_size_are_independent_of_one_another():
    """A plain ViT sees padding: evaluation makes batches of images of one size for that reason."""
    torch.manual_seed(0)
    model = build_model(build_config(str(ROOT / VIT_H), SHRINK)).eval()
    randomize_heads(model)
    spread(model.backbone.net)
    first, same, other = (make_image(96, w, 2, seed) for seed, w in enumerate((96, 96, 160)))
    with torch.no_grad():
        alone = model([first])[0]["instances"].scores
        beside_same = model([first, same])[0]["instances"].scores
        beside_other = model([first, other])[0]["instances"].scores
    torch.testing.assert_close(alone, beside_same, atol=1e-5, rtol=1e-4)
    assert (alone - beside_other).abs().max() > 1e-3


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.DETR.IN_FEATURES", ["p3", "p5"]], "neighbouring levels"),
        (["MODEL.DETR.IN_FEATURES", ["p6"]], "neighbouring levels"),
        (["MODEL.DETR.IN_FEATURES", ["res5"]], "returns p2, p3, p4, p5, p6"),
        (["MODEL.VIT.GLOBAL_BLOCKS", [2]], "from 0 to 1"),
        (["MODEL.VIT.NUM_HEADS", 5], "no multiple"),
        (["MODEL.VIT.PATCH_SIZE", 15], "14 or 16"),
        (
            ["MODEL.VIT.PATCH_SIZE", 14, "MODEL.DETR.IN_FEATURES", ["p2", "p3"]],
            "14 pixels cannot be quartered",
        ),
    ],
)
def test_what_cannot_be_built_is_named(opts, message):
    with pytest.raises(UserError, match=message):
        build_model(build_config(str(ROOT / VIT_H), [*SHRINK, *opts]))
