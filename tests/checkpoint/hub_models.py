"""Small random models that transformers itself writes, as on the Hugging Face hub."""

import json

import torch
from detectron2.data import MetadataCatalog

from groupdetr_d2.checkpoint.official import COCO_CATEGORY_IDS
from tests.checkpoint.test_hugging_face import spread, transformers

COCO = list(MetadataCatalog.get("coco_2017_val").thing_classes)
LABELS = {i: "N/A" for i in range(91)} | dict(zip(COCO_CATEGORY_IDS, COCO, strict=True))
SIZES = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 9, "id2label": LABELS}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
FFN = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
WIDTH = {"ConditionalDetr": "d_model", "DabDetr": "hidden_size", "DeformableDetr": "d_model"}
IMAGE_SIZE = (96, 128)


def resnet(stages=("stage4",)):
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 128],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=list(stages),
    )


def build(name, stages=("stage4",), **options):
    """Builds a detector of transformers."""
    config = getattr(transformers, f"{name}Config")(
        **{"backbone_config": resnet(stages), WIDTH[name]: 32, **SIZES, **HEADS, **FFN, **options}
    )
    torch.manual_seed(0)
    model = spread(getattr(transformers, f"{name}ForObjectDetection")(config).eval(), name)
    with torch.no_grad():  # so narrow a model's boxes would hardly differ
        for key, value in model.state_dict().items():
            if "query_position" in key or "query_refpoint" in key or "bbox_embed" in key:
                value.mul_(3)
            elif "bbox_predictor" in key and "weight" in key:
                value.mul_(2)
    return model


def build_mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=resnet([f"stage{i}" for i in range(1, 5)]),
        **{"encoder_layers": 1, "decoder_layers": 3, "dim_feedforward": 48, "num_queries": 9},
        **{"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32},
        **{"num_attention_heads": 4, "id2label": {i: x for i, x in enumerate(COCO)}},
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    return spread(model, "Mask2Former")


def write(model, folder, **options):
    """Writes a model with the description of its images."""
    model.save_pretrained(folder, **options)
    height, width = IMAGE_SIZE
    processor = {
        **{"size": {"shortest_edge": height, "longest_edge": width}, "do_normalize": True},
        **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def change(folder, **changes):
    """Changes the configuration of a model that is written."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
