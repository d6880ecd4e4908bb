"""First stages with groups: independent proposals, few positions, checkpoints of another K."""

import pytest
import torch

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.layers.per_group import GroupLayerNorm, GroupLinear
from groupdetr_d2.modeling.two_stage import TwoStageQueries, make_anchors
from groupdetr_d2.structures import Memory
from tests.conftest import make_batch, small_model

DINO = "configs/DINO/dino_4scale_R_50_12ep.yaml"
PURE = "configs/DAB-Deformable-DETR/dab_deformable_detr_two_stage_R_50_50ep.yaml"
OBJECTNESS = "configs/Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml"


def selected_by(model, batch, monkeypatch):
    seen, select = [], TwoStageQueries.select
    monkeypatch.setattr(
        TwoStageQueries, "select", staticmethod(lambda *a: seen.append(select(*a)) or seen[-1])
    )
    with torch.no_grad():
        model.predict(batch, model.groups)
    return model.groups.per_group(seen[0], 1)  # (B, K, N)


@pytest.mark.parametrize("config", [DINO, PURE, OBJECTNESS])
def test_groups_propose_different_positions_from_the_start(config, monkeypatch):
    selected = selected_by(small_model(3, config=config), make_batch(), monkeypatch)
    for image in selected.sort(-1).values:
        assert not torch.equal(image[0], image[1]) and not torch.equal(image[1], image[2])


@pytest.mark.parametrize("config", [DINO, PURE, OBJECTNESS])
def test_heads_of_every_group_start_with_the_prior_and_without_offsets(config):
    heads = small_model(3, config=config).head.queries.heads
    torch.testing.assert_close(heads.class_head.bias.sigmoid(), torch.full((3, 80), 0.01))
    assert (heads.box_head.layers[-1].bias == 0).all()
    for weight in (heads.projection.weight, heads.class_head.weight):
        assert not torch.equal(weight[0], weight[1])


def test_parts_of_groups_equal_modules_of_their_own():
    torch.manual_seed(0)
    groups, x = QueryGroups(4, 3), torch.randn(3, 5, 8)
    linear, norm = GroupLinear(groups, 8, 6), GroupLayerNorm(groups, 8)
    torch.nn.init.normal_(norm.weight)
    for g in range(3):
        expected = torch.nn.functional.linear(x[g], linear.weight[g], linear.bias[g])
        torch.testing.assert_close(linear(x, groups)[g], expected)
        expected = torch.nn.functional.layer_norm(x[g], (8,), norm.weight[g], norm.bias[g])
        torch.testing.assert_close(norm(x, groups)[g], expected)
    assert linear(x[:1], groups.primary()).shape == (1, 5, 6)


def test_fewer_positions_than_queries_are_taken_more_than_once():
    scores = torch.tensor([[[0.1, 0.9, 0.5]]])
    assert TwoStageQueries.select(scores, QueryGroups(5)).tolist() == [[1, 2, 0, 1, 2]]
    model = small_model(2, "MODEL.DETR.NUM_OBJECT_QUERIES", 5000, config=DINO).eval()
    with torch.no_grad():
        result = model(make_batch())
    assert len(result[0]["instances"]) == 300


def test_anchors_leave_out_padding_and_the_border():
    """A 4 x 4 map of which 2 rows and 4 columns count; then a level of 2 x 2."""
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    small = torch.tensor([[[False, False], [True, True]]])
    padding = torch.cat([mask.flatten(1), small.flatten(1)], 1)
    memory = Memory(torch.zeros(1, 20, 8), torch.zeros(1, 20, 8), padding, ((4, 4), (2, 2)))
    anchors, valid = make_anchors(memory)
    assert valid[0].tolist() == [True] * 8 + [False] * 8 + [True] * 2 + [False] * 2
    boxes = anchors.sigmoid()[0]
    torch.testing.assert_close(boxes[5], torch.tensor([0.375, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[17], torch.tensor([0.75, 0.5, 0.1, 0.1]))
    assert (boxes[19] == 1).all() and anchors[0, 19].isinf().all()


@pytest.mark.parametrize("num_groups", [1, 5])
def test_a_checkpoint_of_another_k(tmp_path, num_groups):
    """Group 0 stays; copied parts get a little noise, or their groups would train alike."""
    source = small_model(3, config=DINO).eval()
    GroupCheckpointer(source, str(tmp_path)).save("model")
    target = small_model(num_groups, config=DINO).eval()
    GroupCheckpointer(target).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        expected, found = source(make_batch()), target(make_batch())
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
    weight = target.head.queries.heads.projection.weight
    assert len(weight.flatten(1).unique(dim=0)) == num_groups
