"""Plain ViTs in the names of MAE, ViTDet, SAM, CAE and Hugging Face, loaded into ours."""

import logging
import pickle

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone
from torch import nn

from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.checkpoint.vit_files import resize_kernel
from groupdetr_d2.commands import run
from groupdetr_d2.errors import UserError
from groupdetr_d2.layers.relative_position import resize_table
from tests.conftest import ROOT, SHRINK, build_config

CONFIG = str(ROOT / "configs/DINO/dino_4scale_ViT_B_20ep.yaml")
DIM, DEPTH, GRID, HEADS = 32, 2, 4, 4
PLAIN = ["MODEL.VIT.WINDOW_SIZE", 0, "MODEL.VIT.RELATIVE_POSITION", False]


class Detector(nn.Module):
    """A model that is a backbone alone."""

    def __init__(self, *opts):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = build_backbone(build_config(CONFIG, [*SHRINK, *opts]))

    def features(self, images):
        with torch.no_grad():
            return self.eval().backbone.net(images)["last_feat"]


def load(file, *opts):
    """Loads a file; returns the model and the states of its ViT's tensors."""
    model = Detector(*opts)
    checkpointer = GroupCheckpointer(model)
    checkpointer.load(str(file), checkpointables=[])
    own = {k: x for k, x in checkpointer.states.items() if k.startswith("backbone.net.")}
    return model, {key.removeprefix("backbone.net."): state for key, state in own.items()}


def random_vit(*opts):
    """A ViT of ours with random numbers everywhere, and its tensors by their own names."""
    model = Detector(*opts)
    torch.manual_seed(0)
    for name, p in model.backbone.net.named_parameters():
        nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.2)
    return model, {k: x.clone() for k, x in model.backbone.net.state_dict().items()}


def with_class_token(table):
    return torch.cat([torch.randn(1, 1, table.shape[2]), table], 1)


def mae(state):
    """MAE's file: encoder alone or with decoder."""
    decoder = {f"decoder_blocks.{i}.norm1.weight": torch.ones(8) for i in range(2)}
    beside = {"cls_token": torch.zeros(1, 1, DIM), "norm.weight": torch.ones(DIM)}
    table = {"pos_embed": with_class_token(state["pos_embed"])}
    names = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    return state | table | beside | decoder | names


def sam(state):
    table = state["pos_embed"].unflatten(1, (GRID, GRID))
    names = {k.replace(".fc", ".lin"): x for k, x in (state | {"pos_embed": table}).items()}
    return {f"image_encoder.{k}": x for k, x in names.items()} | {
        "image_encoder.neck.0.weight": torch.zeros(4, DIM, 1, 1),
        "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 4),
    }


def vitdet(state):
    table = {"pos_embed": with_class_token(state["pos_embed"])}
    return {f"backbone.net.{k}": x for k, x in (state | table).items()} | {
        "roi_heads.box_head.fc1.weight": torch.zeros(4, 4)
    }


IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [mae, sam, vitdet])
def test_every_naming_computes_the_same(kind, tmp_path, caplog):
    """Tables of relative positions come along, but for MAE, where they stay at zero."""
    theirs, state = random_vit()
    if kind is mae:
        state = {key: x for key, x in state.items() if "rel_pos" not in key}
        for name, p in theirs.backbone.net.named_parameters():
            if "rel_pos" in name:
                nn.init.zeros_(p)
    content = {key: x.contiguous() for key, x in kind(state).items()}
    if kind is vitdet:
        file = tmp_path / "model_final.pkl"
        arrays = {key: x.numpy() for key, x in content.items()}
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "ViTDet"}))
    else:
        file = tmp_path / "vit.pth"
        torch.save({"model": content} if kind is mae else content, file)
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        model, states = load(file)
    assert torch.equal(model.features(IMAGES), theirs.features(IMAGES))
    missing = {key for key, x in states.items() if x == "missing"}
    assert missing == {key for key in states if kind is mae and "rel_pos" in key}
    assert set(states.values()) - {"missing"} == {"loaded"}
    left = {mae: "decoder_blocks.*.norm1.weight (2)", sam: "image_encoder.neck.*.weight (1)"}
    assert left.get(kind, "roi_heads.box_head.fc1.weight (1)") in caplog.text
    assert "are its names converted?" not in caplog.text


def test_what_stays_random_is_said_by_kind(tmp_path, caplog):
    _, state = random_vit()
    for key in [key for key in state if "rel_pos" in key or "fc1" in key]:
        del state[key]
    torch.save(mae(state), tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        load(tmp_path / "mae.pth")
    said = next(x.getMessage() for x in caplog.records if "not those of the" in x.getMessage())
    for part in (
        "backbone.net.blocks.*.attn.rel_pos_h (2, all 0)",
        "backbone.net.blocks.*.mlp.fc1.weight (2, random)",
        "backbone.simfp_3.*.weight (",
        "backbone.simfp_4.*.norm.bias (2, all 0)",
    ):
        assert part in said
    assert "loaded" in caplog.text and "missing" in caplog.text
    assert "cls_token (1)" in caplog.text and "mask_token (1)" in caplog.text


def their_mae(names):
    """Hugging Face's ViTMAE, which has a class token, and what it computes without it."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
    config = transformers.ViTMAEConfig(
        **{"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS},
        **{"intermediate_size": 4 * DIM, "image_size": 64, "patch_size": 16},
        **{"decoder_hidden_size": 8, "decoder_num_attention_heads": 2},
        **{"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8},
        layer_norm_eps=1e-6,
    )
    model = getattr(transformers, names)(config).eval()
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.2)
    vit = model.vit if names == "ViTMAEForPreTraining" else model
    with torch.no_grad():
        x = vit.embeddings.patch_embeddings(IMAGES[..., :64])
        x = x + vit.embeddings.position_embeddings[:, 1:]
        for layer in vit.layers:
            x = layer(x)
            x = x if isinstance(x, torch.Tensor) else x[0]
    return model, x.unflatten(1, (4, 4)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("form", ["old", "new", "encoder"])
def test_hugging_faces_mae(form, tmp_path):
    """As transformers writes it, in the older names, and in those that its modules have now."""
    theirs, expected = their_mae("ViTMAEModel" if form == "encoder" else "ViTMAEForPreTraining")
    file = tmp_path / "model.safetensors"
    if form == "new":
        safetensors.torch.save_file(theirs.state_dict(), file)
    else:
        theirs.save_pretrained(tmp_path)
    keys = safetensors.torch.load_file(file)
    assert any("q_proj" in key for key in keys) == (form == "new")
    model, states = load(file, *PLAIN)
    assert set(states.values()) == {"loaded"}
    torch.testing.assert_close(model.features(IMAGES[..., :64]), expected, atol=1e-5, rtol=1e-5)


def test_hugging_faces_vitdet(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
    config = transformers.VitDetConfig(
        **{"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS},
        **{"image_size": 128, "pretrain_image_size": 64, "patch_size": 16, "window_size": 3},
        **{"window_block_indices": [0], "use_relative_position_embeddings": True},
        out_indices=[DEPTH],
    )
    theirs = transformers.VitDetBackbone(config).eval()
    torch.manual_seed(0)
    for name, p in theirs.named_parameters():
        nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.2)
    theirs.save_pretrained(tmp_path)
    model, states = load(tmp_path / "model.safetensors")
    assert set(states.values()) == {"loaded"}
    with torch.no_grad():
        expected = theirs(IMAGES).feature_maps[0]
    torch.testing.assert_close(model.features(IMAGES), expected, atol=1e-5, rtol=1e-5)


def cae():
    """CAE's names: biases of queries and values alone, and factors of both halves."""
    torch.manual_seed(0)
    state = {"patch_embed.proj.weight": torch.randn(DIM, 3, 16, 16) * 0.02}
    state |= {"patch_embed.proj.bias": torch.randn(DIM)}
    state |= {"pos_embed": torch.randn(1, GRID**2 + 1, DIM), "cls_token": torch.randn(1, 1, DIM)}
    for i in range(DEPTH):
        shapes = {
            **{"norm1.weight": (DIM,), "norm1.bias": (DIM,), "attn.qkv.weight": (3 * DIM, DIM)},
            **{"attn.q_bias": (DIM,), "attn.v_bias": (DIM,), "attn.proj.weight": (DIM, DIM)},
            **{"attn.proj.bias": (DIM,), "norm2.weight": (DIM,), "norm2.bias": (DIM,)},
            **{"mlp.fc1.weight": (4 * DIM, DIM), "mlp.fc1.bias": (4 * DIM,)},
            **{"mlp.fc2.weight": (DIM, 4 * DIM), "mlp.fc2.bias": (DIM,)},
            **{"gamma_1": (DIM,), "gamma_2": (DIM,)},
        }
        state |= {f"blocks.{i}.{key}": torch.randn(shape) * 0.3 for key, shape in shapes.items()}
    return state


def cae_forward(state, images):
    """The patches' tokens, computed step by step without a class token."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 16)
    size = x.shape[2:]
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    for i in range(DEPTH):
        p = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items()}
        h = F.layer_norm(x, (DIM,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        q, k, v = (h @ w.T for w in p["attn.qkv.weight"].chunk(3))
        q, v = q + p["attn.q_bias"], v + p["attn.v_bias"]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        h = (q @ k.transpose(-1, -2) * (DIM // HEADS) ** -0.5).softmax(-1) @ v
        h = h.transpose(1, 2).flatten(2) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        x = x + p["gamma_1"] * h
        h = F.layer_norm(x, (DIM,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        h = F.gelu(h @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
        x = x + p["gamma_2"] * (h @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])
    return x.transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_cae_with_factors_and_with_factors_folded(scale, tmp_path, caplog):
    state = cae()
    beside = {"teacher.blocks.0.norm1.weight": torch.ones(DIM)}
    torch.save(
        {"model": {f"encoder.{k}": v for k, v in state.items()} | beside}, tmp_path / "c.pth"
    )
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        model, states = load(tmp_path / "c.pth", *PLAIN, "MODEL.VIT.LAYER_SCALE", scale)
    assert set(states.values()) == {"loaded"}
    assert ("4 tensors became part of" in caplog.text) == (scale == 0)
    assert ("blocks.0.gamma_1" in states) == (scale > 0)
    images = IMAGES[..., :64]
    expected = cae_forward(state, images)
    torch.testing.assert_close(model.features(images), expected, atol=2e-4, rtol=1e-4)
    bias = model.backbone.net.blocks[0].attn.qkv.bias
    assert torch.equal(bias[DIM : 2 * DIM], torch.zeros(DIM))
    assert torch.equal(bias[2 * DIM :], state["blocks.0.attn.v_bias"])


def test_other_sizes_are_resampled(tmp_path):
    """Positions bicubically, relative ones linearly, the kernel of patches by its own rule."""
    small = ("MODEL.VIT.PRETRAIN_GRID", 3, "MODEL.VIT.RELATIVE_GRID", 5, "MODEL.VIT.PATCH_SIZE", 14)
    _, state = random_vit(*small)
    torch.save({"model": mae(state)}, tmp_path / "mae.pth")
    model, states = load(tmp_path / "mae.pth")
    resized = {key for key, x in states.items() if x == "resized"}
    tables = {f"blocks.1.attn.rel_pos_{x}" for x in "hw"}  # windows of block 0 are alike
    assert resized == {"pos_embed", "patch_embed.proj.weight", *tables}
    assert set(states.values()) == {"resized", "loaded"}
    own = model.backbone.net.state_dict()
    expected = resize_table(state["pos_embed"], (GRID, GRID)).flatten(1, 2)
    torch.testing.assert_close(own["pos_embed"], expected)
    table = state["blocks.1.attn.rel_pos_h"]
    assert len(table) == 9 and len(own["blocks.1.attn.rel_pos_h"]) == 15
    torch.testing.assert_close(own["blocks.1.attn.rel_pos_h"][7], table[4])  # of distance 0
    expected = resize_kernel(state["patch_embed.proj.weight"], 16)
    assert torch.equal(own["patch_embed.proj.weight"], expected)


@pytest.mark.parametrize("size", [16, 14])
def test_a_resampled_kernel_gives_enlarged_patches_the_same_embeddings(size):
    """And smaller ones nearly so."""
    torch.manual_seed(0)
    side = 30 - size
    kernel, patches = torch.randn(5, 3, side, side), torch.randn(7, 3, side, side)
    if size < side:  # smooth ones, of which little is lost
        coarse = torch.randn(7, 3, 4, 4)
        patches = F.interpolate(coarse, (side, side), mode="bicubic")
    resized = F.interpolate(patches, (size, size), mode="bicubic", antialias=True)
    expected = F.conv2d(patches, kernel).flatten(1)
    found = F.conv2d(resized, resize_kernel(kernel, size)).flatten(1)
    error = (found - expected).abs().max() / expected.std()
    assert error < (1e-4 if size > side else 0.2)
    torch.testing.assert_close(resize_kernel(kernel, side), kernel)


def test_rows_of_257_and_of_197_make_their_own_grids(tmp_path):
    """ViT-H of MAE has 16 x 16 places, the others 14 x 14."""
    for grid in (14, 16):
        _, state = random_vit("MODEL.VIT.PRETRAIN_GRID", grid)
        torch.save({"model": mae(state)}, tmp_path / "mae.pth")
        model, states = load(tmp_path / "mae.pth", "MODEL.VIT.PRETRAIN_GRID", grid)
        assert states["pos_embed"] == "loaded"
        assert torch.equal(model.backbone.net.pos_embed, state["pos_embed"])


def drop_query(state):
    names = {f"blocks.0.attn.{x}.weight": torch.zeros(DIM, DIM) for x in "qk"}
    del state["blocks.0.attn.qkv.weight"]
    return state | names


@pytest.mark.parametrize(
    "change, opts, said",
    [
        (lambda x: x, ["MODEL.VIT.DEPTH", 4], "32 channels and 2 blocks, the model's 32 and 4"),
        (lambda x: x, ["MODEL.VIT.EMBED_DIM", 64], "MODEL.VIT.EMBED_DIM 32 MODEL.VIT.DEPTH 2"),
        (lambda x: x, ["MODEL.VIT.NUM_HEADS", 8], "MODEL.VIT.NUM_HEADS 4"),
        (lambda x: x | {"pos_embed": torch.zeros(1, 19, DIM)}, [], "no square number of rows"),
        (lambda x: x | {"blocks.0.mlp.w12.weight": torch.zeros(2)}, [], "another architecture"),
        (lambda x: x | {"blocks.0.ls1.gamma": torch.zeros(2)}, [], "build_transformers_backbone"),
        (lambda x: x | {f"encoder.{k}": v for k, v in x.items()}, [], "more than one ViT"),
        (drop_query, [], "a part of it is missing"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, opts, said, tmp_path):
    _, state = random_vit()
    torch.save(change(state), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path / "vit.pth", *opts)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckpointError) or opts


def test_a_vit_of_ones_own_keeps_its_names(tmp_path):
    """As a file of a model that has none of this package's ViT."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])
    model.blocks[0].norm1, model.blocks[0].own = nn.LayerNorm(2), nn.Linear(2, 2)
    state = {name: torch.randn_like(x) for name, x in model.state_dict().items()}
    state["patch_embed.proj.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "own.pth")
    GroupCheckpointer(model).load(str(tmp_path / "own.pth"), checkpointables=[])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_convert_writes_a_backbone_in_the_models_shapes(tmp_path, capsys):
    _, state = random_vit("MODEL.VIT.PRETRAIN_GRID", 3)
    state = {key: x for key, x in state.items() if "rel_pos" not in key}
    torch.save({"model": mae(state)}, tmp_path / "mae.pth")
    out = tmp_path / "out.pth"
    files = [str(tmp_path / "mae.pth"), str(out)]
    assert run(["convert", "--source", "vit", *files, *map(str, SHRINK)]) == 0
    said = capsys.readouterr().out
    assert "resampled: backbone.net.pos_embed (1)" in said
    new = next(line for line in said.splitlines() if "start as in a new model" in line)
    assert "backbone.net.blocks.*.attn.rel_pos_h (2)" in new
    beside = next(line for line in said.splitlines() if "no part of a backbone" in line)
    assert "decoder_blocks.*.norm1.weight (2)" in beside and "cls_token (1)" in beside
    assert "backbone.simfp_3.*.weight" in new and "27 of the 51 tensors" in said
    model, states = load(out)
    assert states["pos_embed"] == states["blocks.1.mlp.fc2.bias"] == "loaded"
    assert torch.equal(model.backbone.net.blocks[1].mlp["fc2"].bias, state["blocks.1.mlp.fc2.bias"])


def test_convert_names_a_file_without_a_vit(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match="a.pth has no plain ViT"):
        run(["convert", "--source", "vit", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")])
