"""Pictures of boxes and masks: colours, labels and what is drawn once."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from groupdetr_d2.evaluation.colours import class_colour, contrast, ink_on, oklab
from groupdetr_d2.evaluation.drawing import draw_boxes, draw_masks, put_title, scaled_to, sheet
from groupdetr_d2.evaluation.drawn_once import drawn_once
from groupdetr_d2.evaluation.labels import ROOM, Label, draw_labels, fitting
from groupdetr_d2.evaluation.lettering import text_box
from groupdetr_d2.tasks.boxes import BOXES
from groupdetr_d2.tasks.masks import MASKS

GREY = (90, 90, 90)
SIZE = 0.4


def canvas(height=120, width=160):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def test_eighty_classes_have_eighty_colours_and_neighbours_differ_most():
    """In OKLab 0.02 is about what can be told apart side by side."""
    places = oklab(np.array([class_colour(i) for i in range(80)])[:, ::-1] / 255)
    apart = np.linalg.norm(places[:, None] - places, axis=2) + np.eye(80)
    assert apart.min() > 0.07
    assert min(apart[i, i + 1] for i in range(79)) > 0.14
    assert apart[:10, :10].min() > 0.17
    assert class_colour(5) == class_colour(5) and isinstance(class_colour(5)[0], int)
    assert class_colour(300) == class_colour(300 - 256)  # a class beyond them has one, too


def test_letters_on_every_colour_can_be_read():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert ink_on((0, 255, 255)) == (0, 0, 0) and ink_on((120, 0, 0)) == (255, 255, 255)
    assert min(contrast(class_colour(i), ink_on(class_colour(i))) for i in range(256)) >= 4.5


def plates(labels, shape=(120, 160)):
    """The parts of a picture that labels cover, one mask a label that was written."""
    picture, masks = canvas(*shape), []
    for number in range(1, len(labels) + 1):
        before = picture
        picture = canvas(*shape)
        draw_labels(picture, labels[:number], SIZE)
        masks.append((picture != before).any(2) if number > 1 else (picture != GREY).any(2))
    return masks


def test_labels_of_one_place_do_not_cover_each_other():
    labels = [Label("a label", (40, 40, 90, 80), class_colour(i)) for i in range(6)]
    masks = plates(labels)
    left, up, right, down = text_box("a label", SIZE)
    whole = (right - left + 2 * ROOM) * (up + down + 2 * ROOM)
    for mask in masks:  # each is as large as the first: nothing of the others has changed
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == whole == mask.sum()
    assert not any((a & b).any() for a, b in itertools.combinations(masks, 2))


@pytest.mark.parametrize("text", ["diamond 0.97", "собака 0.97", "狗车 0.5", "Élan g"])
@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (150, -5, 170, 30), (-30, 110, 10, 130), (155, 118, 300, 400)]
)
def test_labels_stay_in_the_picture(text, box):
    picture = canvas()
    assert draw_labels(picture, [Label(text, box, (0, 200, 0))], SIZE) == 1
    left, up, right, down = text_box(text, SIZE)
    rows, columns = np.nonzero((picture != GREY).any(2))
    assert np.ptp(columns) + 1 == right - left + 2 * ROOM
    assert np.ptp(rows) + 1 == up + down + 2 * ROOM


def test_what_has_no_room_is_cut_or_left_out():
    assert fitting("a very long name of a class", SIZE, 60).endswith("...")
    assert fitting("cat", SIZE, 60) == "cat" and fitting("cat", SIZE, 3) == ""
    full = [Label("a label", (2, 2, 30, 30), class_colour(i)) for i in range(60)]
    picture = canvas(40, 60)
    written = draw_labels(picture, full, SIZE)
    assert 1 <= written < 5
    assert draw_labels(canvas(5, 5), full[:1], SIZE) == 0


def detections(boxes, scores, classes, masks=None):
    found = Instances((60, 80), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    if masks is not None:
        found.pred_masks = masks
    return found


TWICE = [[10, 10, 40, 40], [10, 10, 40, 40], [50, 10, 70, 30], [10, 10, 40, 40]]


def test_a_box_of_several_labels_is_drawn_once_with_the_best():
    found = detections(TWICE, [0.3, 0.6, 0.2, 0.5], [0, 1, 1, 2])
    once = drawn_once(found)
    assert once.scores.tolist() == pytest.approx([0.6, 0.2])
    assert once.pred_classes.tolist() == [1, 1]
    best = detections([TWICE[0], TWICE[2]], [0.6, 0.2], [1, 1])
    names, image = ["cat", "dog", "bird"], canvas(60, 80)
    np.testing.assert_array_equal(BOXES.draw(image, found, names), BOXES.draw(image, best, names))
    assert len(BOXES.records(found, names)) == 4
    assert len(drawn_once(found[:0])) == 0
    truth = Instances((60, 80), gt_boxes=Boxes(torch.tensor(TWICE).float()))
    assert drawn_once(truth) is truth


def test_masks_are_the_same_only_if_all_pixels_are():
    masks = torch.zeros(4, 60, 80, dtype=torch.bool)
    masks[:, 10:40, 10:40] = True
    masks[1, 20, 20] = False  # another query's, with the same box around it
    masks[2] = False
    masks[2, 10:30, 50:70] = True
    found = detections(TWICE, [0.3, 0.6, 0.2, 0.5], [0, 1, 1, 2], masks)
    once = drawn_once(found)
    assert once.pred_classes.tolist() == [1, 2, 1]
    names = ["cat", "dog", "bird"]
    assert len(MASKS.records(found, names)) == 4
    assert (MASKS.draw(canvas(60, 80), found, names) != GREY).any()


def test_a_small_mask_is_seen_on_a_large_one():
    masks = np.zeros((2, 50, 50), dtype=bool)
    masks[0, 20:30, 20:30] = True
    masks[1] = True
    picture = draw_masks(canvas(50, 50), masks, [0, 1])
    large, small = picture[10, 10].astype(int), picture[25, 25].astype(int)
    own = np.array(class_colour(0))
    assert np.abs(small - own).sum() < np.abs(large - own).sum()


def test_boxes_of_any_number_are_drawn():
    boxes = np.array([[-1e12, -5, 1e12, 70], [3, 3, 20, 20]])
    picture = draw_boxes(canvas(), boxes, [0, 1], ["cat", "dog"])
    assert (picture != GREY).any()
    np.testing.assert_array_equal(draw_boxes(canvas(), boxes[:0], [], ["cat"]), canvas())


def test_tiles_of_different_heights_make_a_sheet():
    tiles = [put_title(canvas(h, 100), "a title " * 20) for h in (30, 50, 20)]
    whole = sheet(tiles, columns=2)
    assert whole.shape == (50 + 20 + 20 + 20, 200, 3)
    assert not whole[50:70, :100].any()  # black below the lower one
    assert scaled_to(canvas(10, 20), 80).shape == (40, 80, 3)
    assert cv2.imencode(".png", whole)[0]
