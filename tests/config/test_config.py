"""Keys, their words, and configurations of earlier versions."""

import re

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from groupdetr_d2.config import ConfigError, add_groupdetr_config, build_config, check_choices
from groupdetr_d2.config.choices import CHOICES, ChoiceError, value_of
from groupdetr_d2.config.upgrade import upgrade
from groupdetr_d2.registry import VARIANT_REGISTRY
from tests import ROOT
from tests.conftest import all_configs, small_config

KEYS = "".join((ROOT / f"groupdetr_d2/config/{x}.py").read_text() for x in ("keys", "data_keys"))


@pytest.mark.parametrize("key", CHOICES)
def test_a_wrong_word_is_named_with_the_right_ones(key):
    with pytest.raises(ChoiceError, match=f"^{re.escape(key)} is 'trian'; it can be ") as error:
        build_config("", [key, "trian"])
    words = CHOICES[key]
    if not callable(words):
        assert all((word or "empty") in str(error.value) for word in words)


@pytest.mark.parametrize("config", all_configs())
def test_every_yaml_has_right_words(config):
    check_choices(build_config(str(ROOT / config)))


def test_words_are_checked_by_build_model_too():
    """As Detectron2's own scripts call it, without `build_config`."""
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    cfg.MODEL.DETR.PROJECTION_NORM = "gn"
    with pytest.raises(ChoiceError, match="PROJECTION_NORM is 'gn'; it can be empty or GN"):
        build_model(cfg)


def test_every_key_of_several_words_is_in_the_table():
    """What the code compares a key with is a word of it."""
    compared = re.compile(r"cfg\.([A-Z_.0-9]+) (?:==|!=|in|not in) [\"(]")
    for path in (ROOT / "groupdetr_d2").rglob("*.py"):
        for key in compared.findall(path.read_text()):
            assert key in CHOICES or key == "MODEL.DEVICE", (path, key)


def test_first_stages_belong_to_variants():
    with pytest.raises(ChoiceError, match="TWO_STAGE is 'pure'; it can be empty or objectness"):
        small_config("configs/Deformable-DETR/deformable_detr_R_50_50ep.yaml", 1, *pure())
    with pytest.raises(ChoiceError, match="TWO_STAGE is 'pure'; it can be empty$"):
        small_config("configs/DINO/dino_4scale_R_50_12ep.yaml", 1, *pure())


def pure():
    return ["MODEL.DETR.TWO_STAGE", "pure"]


def test_a_variant_of_ones_own_may_have_any_first_stage():
    @VARIANT_REGISTRY.register()
    def own_detr(cfg, backbone_shape):
        raise NotImplementedError

    try:
        cfg = build_config("", ["MODEL.DETR.VARIANT", "own_detr", *pure()])
        assert value_of(cfg, "MODEL.DETR.TWO_STAGE") == "pure"
    finally:
        del VARIANT_REGISTRY._obj_map["own_detr"]


def test_every_description_is_a_sentence():
    comments = re.findall(r"((?:    # .*\n)+)    cfg\.([\w.]+) = (?!CN)", KEYS)
    assert len(comments) == len(re.findall(r"    cfg\.[\w.]+ = (?!CN)", KEYS))
    for comment, key in comments:
        text = " ".join(line.strip("# ") for line in comment.splitlines())
        assert text[0].isupper() and text.endswith(".") and len(text.split()) > 1, key


@pytest.mark.parametrize("is_dino", [True, False])
def test_configurations_of_earlier_versions_are_read(is_dino):
    name = "DINO/dino_4scale_R_50_12ep" if is_dino else "DAB-DETR/dab_detr_R_50_12ep"
    cfg = build_config(str(ROOT / f"configs/{name}.yaml"))
    old = yaml.safe_load(cfg.dump())
    detr = old["MODEL"]["DETR"]
    detr["CHECKPOINTING"] = detr.pop("RECOMPUTE")
    detr |= {"QUERY_SCALE": not is_dino, "DECODER_NORM": is_dino, "SHARED_HEADS": is_dino}
    detr |= {"LOOK_FORWARD_TWICE": is_dino}
    detr["DENOISING"]["CONTRASTIVE"] = is_dino
    if is_dino:
        detr |= {"VARIANT": "dab_deformable_detr", "TWO_STAGE": "mixed"}
    assert upgrade(old) == yaml.safe_load(cfg.dump())


def test_the_nearest_key_is_named():
    with pytest.raises(ConfigError, match="RECOMPUT .*nearest is MODEL.DETR.RECOMPUTE"):
        build_config("", ["MODEL.DETR.RECOMPUT", True])


@pytest.mark.parametrize(
    "variant, architecture",
    [("petr", "GroupDETR"), ("conditional_detr", "GroupPETR"), ("dino", "GroupMask2Former")],
)
def test_a_variant_of_another_task_is_named(variant, architecture):
    opts = ["MODEL.DETR.VARIANT", variant, "MODEL.META_ARCHITECTURE", architecture]
    with pytest.raises(ChoiceError, match=f"META_ARCHITECTURE is '{architecture}'"):
        build_config("", ["MODEL.DEVICE", "cpu", *opts])
