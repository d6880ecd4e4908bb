import argparse

import numpy as np
import pytest
import torch

from groupdetr_d2.checkpoint.official import COCO_CATEGORY_IDS
from groupdetr_d2.commands import run as main
from groupdetr_d2.inference.predictor import Predictor
from tests.conftest import ROOT
from tests.golden_rule import load_case, make_inputs, make_state_dict
from tests.variants.test_goldens import golden_config, golden_opts


def opts(name):
    """The recorded case's model, with the 80 classes that users get."""
    pairs = [str(x) for x in golden_opts(name)]
    pairs[pairs.index("MODEL.DETR.NUM_CLASSES") + 1] = "80"
    return pairs


def save_official(path, name, dilation=False, **changes):
    spec, outputs = load_case(name)
    state = {**make_state_dict(spec), **changes}
    trained_with = argparse.Namespace(lr=1e-4, dilation=dilation)
    torch.save({"model": state, "args": trained_with, "epoch": 49}, path)
    return spec, outputs


def convert(tmp_path, name, *more):
    arguments = ["--source", "conditional-detr", "--config-file", golden_config(name)]
    files = [str(tmp_path / "official.pth"), str(tmp_path / "ours.pth")]
    return main(["convert", *arguments, *files, *opts(name), *more])


@pytest.mark.parametrize("name", ["conditional_detr", "group_conditional_detr"])
def test_a_converted_checkpoint_gives_the_official_outputs(tmp_path, name, capsys):
    spec, outputs = save_official(
        tmp_path / "official.pth", name, **{"transformer.unheard_of": torch.zeros(2)}
    )
    convert(tmp_path, name)
    assert "1 official keys without a home" in capsys.readouterr().out
    predictor = Predictor(tmp_path / "ours.pth")
    with torch.no_grad():
        found = predictor.model.predict(make_inputs(spec), predictor.model.groups.primary())
    expected = outputs["eval_logits_2"][..., COCO_CATEGORY_IDS]
    np.testing.assert_allclose(found.logits[-1], expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.boxes[-1], outputs["eval_boxes_2"], atol=1e-4, rtol=0)


def test_a_dc5_checkpoint_needs_a_dc5_configuration(tmp_path):
    save_official(tmp_path / "official.pth", "conditional_detr", dilation=True)
    with pytest.raises(SystemExit, match="trained with DC5.*--config-file"):
        convert(tmp_path, "conditional_detr")


def test_a_hugging_face_folder_is_read(tmp_path):
    pytest.importorskip("transformers", reason="transformers is a test extra")
    from tests.checkpoint.test_hugging_face import CASES, build_theirs

    build_theirs("DabDetr").save_pretrained(tmp_path / "theirs")
    config = str(ROOT / "configs" / CASES["DabDetr"])
    small = opts("dab_detr")
    small[small.index("MODEL.DETR.DIM_FEEDFORWARD") + 1] = "64"
    out = str(tmp_path / "ours.pth")
    files = [str(tmp_path / "theirs"), out]
    main(["convert", "--source", "hf-dab-detr", "--config-file", config, *files, *small])
    assert torch.load(out, weights_only=True)["model"]["head.queries.bank.shape"].tolist() == [
        1,
        20,
    ]


def test_a_key_that_found_no_home_is_named(tmp_path, capsys):
    save_official(tmp_path / "official.pth", "conditional_detr", other=torch.zeros(2, 3))
    convert(tmp_path, "conditional_detr")
    assert "no name for other (2, 3)" in capsys.readouterr().out


def test_a_parameter_that_stays_empty_fails_and_writes_nothing(tmp_path):
    save_official(tmp_path / "official.pth", "conditional_detr")
    with pytest.raises(SystemExit, match="head.decoder.layers.3"):
        convert(tmp_path, "conditional_detr", "MODEL.DETR.DEC_LAYERS", "4")
    assert not (tmp_path / "ours.pth").exists()


def test_another_number_of_queries_is_named(tmp_path):
    save_official(tmp_path / "official.pth", "conditional_detr")
    with pytest.raises(SystemExit, match="NUM_OBJECT_QUERIES"):
        convert(tmp_path, "conditional_detr", "MODEL.DETR.NUM_OBJECT_QUERIES", "7")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match="official.pth does not exist"):
        convert(tmp_path, "conditional_detr")
    (tmp_path / "official.pth").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match="official.pth cannot be read"):
        convert(tmp_path, "conditional_detr")
