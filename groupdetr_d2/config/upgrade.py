"""Configurations of earlier versions, which checkpoints carry, in today's keys."""

RENAMED = {"CHECKPOINTING": "RECOMPUTE"}  # of MODEL.DETR
# the switches that made DINO of dab_deformable_detr
DINO_SWITCHES = ("QUERY_SCALE", "DECODER_NORM", "SHARED_HEADS", "LOOK_FORWARD_TWICE")
# Detectron2's sizes of test-time augmentation, which were every model's
AUG_SIZES = {"MIN_SIZES": [400, 500, 600, 700, 800, 900, 1000, 1100, 1200], "MAX_SIZE": 4000}


def upgrade(content: dict) -> dict:
    """Renames the keys of an earlier version in place, and returns the nested dictionary."""
    detr = content["MODEL"]["DETR"]
    content["MODEL"].get("SWIN", {}).pop("OUT_FEATURES", None)  # they are those of IN_FEATURES
    for old, new in RENAMED.items():
        if old in detr:
            detr[new] = detr.pop(old)
    is_contrastive = detr["DENOISING"].pop("CONTRASTIVE", False)
    switches = {name: detr.pop(name) for name in DINO_SWITCHES if name in detr}
    if detr["TWO_STAGE"] == "mixed" and is_contrastive and switches.get("SHARED_HEADS"):
        detr["VARIANT"], detr["TWO_STAGE"] = "dino", ""
    aug = content.get("TEST", {}).get("AUG", {})
    if "SCALES" not in aug and list(aug.get("MIN_SIZES", ())) == AUG_SIZES["MIN_SIZES"]:
        for name, value in AUG_SIZES.items():
            if name == "MIN_SIZES" or aug.get(name) == value:
                aug.pop(name)
    return content
