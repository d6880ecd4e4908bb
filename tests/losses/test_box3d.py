import math

import pytest
import torch

from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.layers.box3d_ops import decode_boxes, encode_boxes
from groupdetr_d2.losses.box3d import (
    Box3DPredictions,
    Box3DTargets,
    code_cost,
    code_loss,
    of_this_process,
)
from groupdetr_d2.structures import Matches

BOXES = torch.tensor(
    [
        [1.0, 2.0, 0.5, 2.0, 4.0, 1.5, 0.3, 1.0, -1.0],
        [-3.0, 0.0, 0.0, 0.5, 0.7, 1.8, -2.5, 0.0, 0.0],
    ]
)


def test_a_code_by_hand():
    code = encode_boxes(BOXES[:1])[0].tolist()
    expected = [1, 2, math.log(2), math.log(4), 0.5, math.log(1.5), math.sin(0.3), math.cos(0.3)]
    assert code == pytest.approx([*expected, 1, -1])


def test_decoding_is_the_inverse_of_encoding():
    torch.testing.assert_close(decode_boxes(encode_boxes(BOXES)), BOXES)


def predictions_and_targets():
    codes = encode_boxes(BOXES)
    found = Box3DPredictions(torch.zeros(1, 1, 2, 10), codes[None, None] + 0.5)
    return found, Box3DTargets(torch.tensor([0, 1]), codes, counts=[2])


def test_the_velocity_is_no_part_of_the_matching_cost():
    found, targets = predictions_and_targets()
    cost = code_cost(found.of_image(0), targets)
    torch.testing.assert_close(cost[0].diagonal(), torch.full((2,), 8 * 0.5))


def test_the_velocity_weighs_less_in_the_loss():
    found, targets = predictions_and_targets()
    pairs = torch.tensor([[0, 1]])
    matches = Matches(torch.zeros(2, dtype=torch.long), pairs, pairs)
    loss = code_loss(found, targets, matches, velocity_weight=0.2)
    torch.testing.assert_close(loss, torch.tensor([2 * (8 * 0.5 + 2 * 0.2 * 0.5)]))


def test_an_unknown_velocity_leaves_its_object_out():
    found, targets = predictions_and_targets()
    targets.codes[0, 8] = torch.nan
    pairs = torch.tensor([[0, 1]])
    matches = Matches(torch.zeros(2, dtype=torch.long), pairs, pairs)
    found.codes.requires_grad_()
    loss = code_loss(found, targets, matches, velocity_weight=1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([5.0]))
    assert found.codes.grad[0, 0, 0].abs().sum() == 0


def test_no_targets():
    found, targets = predictions_and_targets()
    none = Box3DTargets(targets.labels[:0], targets.codes[:0], counts=[0])
    index = torch.zeros(1, 0, dtype=torch.long)
    assert code_cost(found.of_image(0), none).shape == (1, 2, 0)
    loss = code_loss(found, none, Matches(index[0], index, index), velocity_weight=1.0)
    assert loss.tolist() == [0.0]


def test_the_divisor_of_the_class_loss_is_of_all_groups():
    assert of_this_process([3, 2], QueryGroups(6, 3)) == 15
    assert of_this_process([0, 0], QueryGroups(6, 3)) == 3
