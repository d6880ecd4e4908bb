"""What a predictor takes, how it batches, and its options."""

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr_d2 import Predictor
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference.predictor import by_size
from tests.inference.test_predict import make_checkpoint, picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor(weights, threshold=0.0)


def same(found, expected):
    torch.testing.assert_close(found.instances.scores, expected.instances.scores)
    boxes, wanted = found.instances.pred_boxes.tensor, expected.instances.pred_boxes.tensor
    torch.testing.assert_close(boxes, wanted, atol=1e-3, rtol=1e-4)
    return True


def kinds_of(image, folder):
    """One image, BGR, as every kind of value that a user has."""
    rgb = np.ascontiguousarray(image[..., ::-1])
    Image.fromarray(rgb).save(folder / "image.png")
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    yield "path", folder / "image.png"
    yield "text", str(folder / "image.png")
    yield "PIL", Image.fromarray(rgb)
    yield "PIL with transparency", Image.fromarray(rgb).convert("RGBA")
    yield "floats", image.astype(np.float32) / 255
    yield "sixteen bits", image.astype(np.uint16)
    yield "BGRA", np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    yield "Fortran's order", np.asfortranarray(image)
    yield "tensor", tensor
    yield "tensor of floats", tensor.float() / 255
    yield "tensor with gradient", (tensor.double() / 255).requires_grad_()


def test_every_usual_kind_of_image_is_the_same_image(predictor, tmp_path):
    image = picture()
    image[0, 0] = 255  # floats in [0, 1] are told from others by their range
    expected = predictor(image)
    for kind, value in kinds_of(image, tmp_path):
        found = predictor(value)
        np.testing.assert_array_equal(found.image, image, kind)
        assert same(found, expected), kind


def test_a_photograph_that_lies_on_its_side_is_turned(predictor):
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.getexif().update(exif)
    assert predictor(image).image.shape == (90, 60, 3)


def test_half_floats_and_grey_tensors(predictor):
    grey = torch.rand(1, 60, 90)
    same(predictor(grey.bfloat16()), predictor(grey.bfloat16().float().repeat(3, 1, 1)))


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.zeros(60, 90), r"tensor of shape \(60, 90\)"),
        (torch.zeros(5, 60, 90), r"tensor of shape \(5, 60, 90\)"),
        (torch.zeros(3, 6, 6, dtype=torch.complex64), "complex64 is no image"),
        (7, "a int is no image"),
        ({"image": 1}, "Keyframes are for models of several cameras"),
    ],
)
def test_what_is_no_image_is_refused(predictor, value, message):
    with pytest.raises(UserError, match=message):
        predictor(value)


def test_batches_find_what_single_images_find(predictor):
    """Images of several sizes, in their order; one of a size of its own among them."""
    images = [picture(i, size) for i, size in enumerate([(60, 90), (90, 60), (60, 90), (64, 64)])]
    sizes = []
    handle = predictor.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found = predictor(images)
    handle.remove()
    assert sorted(sizes) == [1, 1, 2]
    for one, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(one.image, image)
        assert same(one, predictor(image))
    for one, other in zip(predictor(images, group=2), images, strict=True):
        assert same(one, predictor(other, group=2))


def test_augmentation_is_of_the_primary_group_alone(predictor, monkeypatch):
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    predictor.cfg.TEST.AUG.ENABLED = True
    with pytest.raises(UserError, match="TEST.AUG.ENABLED goes with the primary group alone"):
        predictor(picture(0, (60, 90)), group=0)


def test_arrays_and_tensors_of_four_dimensions_are_several_images(predictor):
    images = np.stack([picture(i) for i in range(3)])
    tensor = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2)
    for several in (images, tensor, list(images), tuple(images)):
        found = predictor(several)
        assert isinstance(found, list)
        assert all(same(a, predictor(b)) for a, b in zip(found, images, strict=True))


def test_an_iterator_is_read_a_batch_ahead(weights):
    predictor = Predictor(weights, threshold=0.0, batch_size=2)
    taken = []
    stream = predictor(taken.append(i) or picture(i) for i in range(5))
    assert not taken
    first = next(stream)
    assert taken == [0, 1]
    assert same(first, predictor(picture(0)))
    assert len(list(stream)) == 4 and taken == [0, 1, 2, 3, 4]


def test_by_size_keeps_every_place_once():
    inputs = [{"image": torch.zeros(3, 4, 5 + i % 2)} for i in range(7)]
    batches = list(by_size(inputs, 3))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [len(batch) for batch in batches] == [3, 1, 3]


def test_classes_are_chosen_by_name(weights, predictor):
    found = Predictor(weights, threshold=0.0, classes=["dog"])(picture())
    expected = predictor(picture()).instances
    expected = expected[expected.pred_classes == 1]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.instances.scores, expected.scores)


def test_sizes_and_limits_of_ones_own(weights, predictor):
    small = Predictor(weights, threshold=0.0, image_size=32, max_detections=3)
    assert small.prepare(picture())[1]["image"].shape == (3, 32, 48)
    assert small.cfg.INPUT.MAX_SIZE_TEST == round(predictor.cfg.INPUT.MAX_SIZE_TEST * 32 / 48)
    assert len(small(picture())) == 3
    assert small(picture()).instances.image_size == (60, 90)


def test_half_precision_is_near_full_precision(weights, predictor):
    half = Predictor(weights, threshold=0.0, half=True)(picture()).instances
    full = predictor(picture()).instances
    assert half.scores.dtype == torch.float32
    assert (half.scores - full.scores).abs().max() < 0.02
    assert not torch.equal(half.scores, full.scores)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"classes": ["dgo"]}, "no class 'dgo'; near names: dog"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_size": 0.5}, "image_size is 0.5"),
        ({"max_detections": -1}, "max_detections is -1"),
        ({"device": "gpu"}, "gpu"),
        ({"threshold": float("nan")}, "the threshold is nan"),
    ],
)
def test_wrong_options_are_named(weights, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(weights, **options)


def test_an_image_that_cannot_be_read_costs_itself_alone(predictor, tmp_path):
    found = list(predictor.each([picture(), tmp_path / "no.png", picture(1)]))
    assert isinstance(found[1], UserError) and "no.png" in str(found[1])
    assert same(found[0], predictor(picture())) and same(found[2], predictor(picture(1)))
    with pytest.raises(UserError, match="no.png"):
        predictor([picture(), tmp_path / "no.png"])


def test_numbers_that_are_not_finite_cost_their_batch(weights):
    broken = Predictor(weights, batch_size=2)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    found = list(broken.each([picture(), picture(1), picture(2)]))
    assert all("not finite" in str(error) for error in found) and len(found) == 3
