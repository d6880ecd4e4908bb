"""Parity with Hugging Face's models, built from a configuration with random weights."""

import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import (
    hugging_face,
    hugging_face_deformable,
    hugging_face_mask2former,
)
from groupdetr_d2.config import build_config
from tests.conftest import ROOT, make_batch

transformers = pytest.importorskip("transformers", reason="transformers is a test extra")

SIZES = {"encoder_layers": 2, "decoder_layers": 3, "num_queries": 20, "num_labels": 91}
CASES = {
    "ConditionalDetr": "ConditionalDETR/conditional_detr_R_50_50ep.yaml",
    "DabDetr": "DAB-DETR/dab_detr_R_50_50ep.yaml",
}
DEFORMABLE = {
    "one-stage": "Deformable-DETR/deformable_detr_R_50_50ep.yaml",
    "two-stage": "Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml",
}


MASK2FORMER = "Mask2Former/mask2former_R_50_50ep.yaml"


def resnet(stages):
    return transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[256, 512, 1024, 2048],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=list(stages),
    )


def build_theirs(name, stages=("stage4",), **options):
    config = getattr(transformers, f"{name}Config")(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=resnet(stages),
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        **SIZES,
        **options,
    )
    torch.manual_seed(0)
    return spread(getattr(transformers, f"{name}ForObjectDetection")(config).eval(), name)


def build_their_mask2former():
    """Of three decoder layers, which make four predictions."""
    config = transformers.Mask2FormerConfig(
        backbone_config=resnet(["stage1", "stage2", "stage3", "stage4"]),
        encoder_layers=2,
        decoder_layers=4,
        dim_feedforward=64,
        num_queries=20,
        num_labels=91,
        output_auxiliary_logits=True,
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    return spread(model, "Mask2Former")


def spread(model, name):
    """Moves the weights from their initial values, which hide differences."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(("running_mean", "running_var")) and "backbone" in key:
                value.uniform_(0.9, 1.1) if key.endswith("var") else value.normal_(0, 0.1)
            elif value.is_floating_point() and value.dim() == 1:
                value.add_(0.1 * torch.randn_like(value))  # norms and biases are all alike
            elif value.is_floating_point():
                is_box = name == "ConditionalDetr" and ("bbox" in key or "query_position" in key)
                value.mul_(6 if is_box else 1.5)  # else its boxes hardly differ
                value.add_(0.02 * torch.randn_like(value))
    return model


def build_ours(config, state, converter=hugging_face):
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_CLASSES", 91, "MODEL.DETR.DROPOUT", 0.0),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 20, "MODEL.DETR.ENC_LAYERS", 2),
        *("MODEL.DETR.DEC_LAYERS", 3, "MODEL.DETR.DIM_FEEDFORWARD", 64),
    ]
    model = build_model(build_config(str(ROOT / "configs" / config), opts)).eval()
    converted, unmapped = converter.convert_state_dict(state, num_queries=20, num_classes=91)
    assert all("num_batches_tracked" in key for key in unmapped), unmapped
    model.load_state_dict(converted)
    return model


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_equal(name):
    theirs = build_theirs(name)
    assert_outputs_are_equal(build_ours(CASES[name], theirs.state_dict()), theirs)


def test_every_prediction_of_mask2former_is_equal():
    """In double precision, since a mask's sign decides what the next layer sees."""
    theirs = build_their_mask2former().double()
    converter = hugging_face_mask2former.CONVERTER
    ours = build_ours(MASK2FORMER, theirs.state_dict(), converter).double()
    batch = make_batch(sizes=((96, 128), (96, 128)))  # they have no padding
    with torch.no_grad():
        expected = theirs(pixel_values=ours.preprocess_image(batch).tensor)
        found = ours.predict(batch, ours.groups)
    masks = torch.einsum("lbqc,bchw->lbqhw", found.embeddings, found.features.value)
    for name, values in (("class", found.logits), ("masks", masks)):
        every = [x[f"{name}_queries_logits"] for x in (*expected.auxiliary_logits, expected)]
        assert len(every) == 4 and every[0].std() > 0.05
        torch.testing.assert_close(values, torch.stack(every), atol=1e-6, rtol=0)


def test_tensors_of_mask2former_without_a_home_keep_their_name():
    state = {"model.transformer_module.decoder.unheard_of": torch.zeros(2)}
    _, unmapped = hugging_face_mask2former.CONVERTER.convert_state_dict(state)
    assert list(unmapped) == list(state)


@pytest.mark.parametrize("kind", DEFORMABLE)
def test_outputs_of_deformable_detr_are_equal(kind):
    options = {"with_box_refine": True, "two_stage": kind == "two-stage"}
    options["two_stage_num_proposals"] = 20
    theirs = build_theirs("DeformableDetr", ("stage2", "stage3", "stage4"), **options)
    ours = build_ours(DEFORMABLE[kind], theirs.state_dict(), hugging_face_deformable.CONVERTER)
    assert_outputs_are_equal(ours, theirs)


def assert_outputs_are_equal(ours, theirs):
    """On a padded batch, with their mask."""
    batch = make_batch(sizes=((96, 128), (128, 96)))
    images = ours.preprocess_image(batch)
    mask = torch.zeros(len(batch), *images.tensor.shape[-2:], dtype=torch.long)
    for i, (height, width) in enumerate(images.image_sizes):
        mask[i, :height, :width] = 1
    with torch.no_grad():
        expected = theirs(pixel_values=images.tensor, pixel_mask=mask)
        found = ours.predict(batch, ours.groups)
    assert expected.logits.std() > 0.05 and expected.pred_boxes.std() > 0.05
    torch.testing.assert_close(found.logits[-1], expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("model.backbone.conv_encoder.model.conv1.weight", "backbone.stem.conv1.weight"),
        (
            "model.backbone.conv_encoder.model.layer2.0.downsample.1.bias",
            "backbone.res3.0.shortcut.norm.bias",
        ),
        (
            "model.pixel_level_module.encoder._backbone.layer2.0.bn1.running_var",
            "backbone.res3.0.conv1.norm.running_var",
        ),
        (
            "model.decoder.layers.0.ca_qpos_sine_proj.weight",
            "head.decoder.layers.0.cross_attn.q_sine.weight",
        ),
        (
            "model.decoder.layers.0.sa_kcontent_proj.bias",
            "head.decoder.layers.0.self_attn.k_content.bias",
        ),
        ("model.decoder.layers.0.sa_v_proj.bias", "head.decoder.layers.0.self_attn.v.bias"),
        ("model.decoder.layers.0.ca_v_proj.bias", "head.decoder.layers.0.cross_attn.v.bias"),
        (
            "model.decoder.layers.1.encoder_attn.out_proj.weight",
            "head.decoder.layers.1.cross_attn.out_proj.weight",
        ),
    ],
)
def test_names_of_files_on_the_hub(theirs, ours):
    assert hugging_face.convert_key(theirs) == ours


def test_names_of_deformable_files_on_the_hub():
    layer = "model.decoder.layers.0."
    names = {
        f"{layer}fc1.weight": "transformer.decoder.layers.0.linear1.weight",
        f"{layer}self_attn.out_proj.bias": "transformer.decoder.layers.0.self_attn.out_proj.bias",
        f"{layer}encoder_attn_layer_norm.weight": "transformer.decoder.layers.0.norm1.weight",
        "model.query_position_embeddings.weight": "query_embed.weight",
        "model.reference_points.weight": "transformer.reference_points.weight",
        "class_embed.0.weight": "class_embed.0.weight",
    }
    converter = hugging_face_deformable.CONVERTER
    found = converter.official_state_dict(dict.fromkeys(names, torch.zeros(1)))
    assert list(found) == list(names.values())
