"""The paper's ablations: joint self-attention, naive one-to-many assignment, frozen parts."""

import logging

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.config import build_config, check_ranges
from groupdetr_d2.config.ranges import RangeError
from groupdetr_d2.engine.freezing import freeze
from groupdetr_d2.errors import UserError
from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.losses.box2d import BoxTargets
from tests.conftest import ROOT, make_batch, small_config, small_model
from tests.losses.test_matching import box_criterion, random_predictions, random_targets

JOINT = ("MODEL.DETR.JOINT_SELF_ATTENTION", True)
ENCODER = ["backbone.*", "head.neck.*", "head.encoder.*"]


def test_with_joint_self_attention_groups_see_one_another_in_training_alone():
    joint, separate = small_model(3, *JOINT), small_model(3)
    joint.load_state_dict(separate.state_dict())
    batch = make_batch()
    with torch.no_grad():
        primary = joint.groups.primary()
        alone = separate.predict(batch, primary).logits
        assert torch.equal(joint.predict(batch, primary).logits, alone)
        before = joint.predict(batch, joint.groups).logits
        joint.head.queries.bank.weight[6:12] += 1  # group 1
        after = joint.predict(batch, joint.groups).logits
    assert not torch.allclose(before[:, :, :6], after[:, :, :6])


def test_joint_self_attention_folds_nothing_and_masks_nothing():
    groups = QueryGroups(4, 3, joint_self_attention=True)
    x = torch.randn(2, 12, 8)
    assert groups.fold(x) is x and torch.equal(groups.unfold(x), x)
    assert not groups.attention_mask().any()


def test_joint_self_attention_with_denoising_is_refused():
    with pytest.raises(ValueError, match="JOINT_SELF_ATTENTION needs .*DENOISING.NUM_QUERIES 0"):
        small_model(2, *JOINT, config="configs/DN-DETR/dn_detr_R_50_12ep.yaml")


def test_repeated_targets_stay_with_their_image():
    targets = BoxTargets(torch.tensor([5, 6, 7]), torch.rand(3, 4), counts=[1, 0, 2])
    repeated = targets.repeated(2)
    assert repeated.labels.tolist() == [5, 5, 6, 7, 6, 7] and repeated.counts == [2, 0, 4]
    assert torch.equal(repeated.boxes[4:], targets.boxes[1:])


@pytest.mark.parametrize("counts", [(2, 1), (0, 0), (4, 0)])
def test_naive_one_to_many_matches_every_target_so_often(counts):
    """Also where there are more matches wanted (8) than queries (6): all queries are matched."""
    criterion, groups = box_criterion(), QueryGroups(6)
    criterion.matches_per_target = 2
    predictions, targets = random_predictions(), random_targets(counts)
    matches = criterion.match(predictions, targets.repeated(2), groups)
    for b, count in enumerate(counts):
        queries = matches.query[-1][matches.image == b]
        assert len(queries.unique()) == len(queries) == min(2 * count, 6)
    losses = criterion(predictions, targets, groups)
    plain = box_criterion()(predictions, targets.repeated(2), groups)
    for name, value in losses.items():
        torch.testing.assert_close(value, plain[name])


def test_a_number_of_matches_below_one_is_an_error():
    cfg = small_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml")
    cfg.MODEL.DETR.MATCHES_PER_TARGET = 0
    with pytest.raises(RangeError, match="MATCHES_PER_TARGET is 0"):
        check_ranges(cfg)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table7b_naive_one_to_many", (3300, 1, 11, False)),
        ("table7c_joint_self_attention", (300, 11, 1, True)),
        ("table1a_fixed_encoder_single", (300, 1, 1, False)),
        ("table1b_fixed_encoder_group", (300, 11, 1, False)),
        ("table1c_trained_encoder_group", (300, 11, 1, False)),
    ],
)
def test_rows_of_the_papers_tables(name, expected):
    model = build_config(str(ROOT / f"configs/ablations/{name}.yaml")).MODEL
    detr = model.DETR
    assert expected == (
        detr.NUM_OBJECT_QUERIES,
        detr.NUM_GROUPS,
        detr.MATCHES_PER_TARGET,
        detr.JOINT_SELF_ATTENTION,
    )
    assert model.FREEZE == (ENCODER if name in FIXED else [])
    assert model.LOAD_ONLY == (ENCODER if name.startswith("table1") else [])


FIXED = ("table1a_fixed_encoder_single", "table1b_fixed_encoder_group")


@pytest.mark.parametrize(
    ("name", "epochs"),
    [(f"table2_{m}_R_50_{e}ep", e) for m in ("conditional_detr", "dab_detr") for e in (15, 60)],
)
def test_longer_baselines_have_whole_epochs(name, epochs):
    solver = build_config(str(ROOT / f"configs/ablations/{name}.yaml")).SOLVER
    assert solver.MAX_ITER == epochs * 7393 and solver.STEPS[0] % 7393 == 0


def test_frozen_parts_do_not_move():
    """Batch norms among them do not change their statistics either."""
    model = small_model(2, "MODEL.RESNETS.NORM", "BN")
    freeze(model, ENCODER)
    assert isinstance(model.backbone.stem.conv1.norm, FrozenBatchNorm2d)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    sum(model(make_batch()).values()).backward()
    optimizer.step()
    frozen = ("backbone.", "head.neck.", "head.encoder.")
    for name, value in model.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(
        model.head.predictor.class_heads[0].weight, before["head.predictor.class_heads.0.weight"]
    )


def test_a_pattern_that_freezes_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'head.encoder'.* begin with .*head\.encoder,.*add \.\*"):
        freeze(small_model(), ["backbone.*", "head.encoder"])


def test_a_new_run_takes_the_wanted_parts_alone_and_a_resumed_one_everything(tmp_path, caplog):
    source, target = small_model(2), small_model(2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    GroupCheckpointer(source, str(tmp_path)).save("model")
    checkpointer = GroupCheckpointer(target, str(tmp_path), load_only=ENCODER)
    decoder = {n: x.clone() for n, x in target.state_dict().items() if ".decoder." in n}
    with caplog.at_level(logging.WARNING):
        checkpointer.resume_or_load(str(tmp_path / "model.pth"), resume=False)
    own, theirs = target.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], value) for name, value in decoder.items())
    for name in own:
        if name.startswith(("backbone.", "head.neck.", "head.encoder.")):
            assert torch.equal(own[name], theirs[name]), name
    checkpointer.resume_or_load("", resume=True)
    assert all(torch.equal(x, theirs[name]) for name, x in target.state_dict().items())


def test_a_pattern_that_loads_nothing_is_an_error(tmp_path):
    GroupCheckpointer(small_model(), str(tmp_path)).save("model")
    checkpointer = GroupCheckpointer(small_model(), load_only=["transformer.*"])
    with pytest.raises(UserError, match=r"'transformer\.\*'.*begin with backbone"):
        checkpointer.resume_or_load(str(tmp_path / "model.pth"), resume=False)
