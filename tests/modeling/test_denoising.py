import pytest
import torch

from groupdetr_d2.groups import QueryGroups, move_group_to_front
from groupdetr_d2.layers.box_ops import box_cxcywh_to_xyxy
from groupdetr_d2.layers.position_encoding import inverse_sigmoid
from groupdetr_d2.losses.box2d import BoxTargets
from groupdetr_d2.modeling import denoising
from groupdetr_d2.modeling.batch import LabelError
from groupdetr_d2.modeling.denoising import (
    ContrastiveDenoising,
    LabelDenoising,
    Noise,
    denoising_mask,
    locate_targets,
)
from groupdetr_d2.modeling.reference_noise import BorderNoise, CenterAndSizeNoise
from groupdetr_d2.structures import Memory, Queries
from tests.conftest import make_batch, small_model

CONFIG = "configs/DN-DETR/dn_detr_R_50_12ep.yaml"
N = 6


def dn_model(num_groups=1, num_denoising=7):
    return small_model(num_groups, "MODEL.DETR.DENOISING.NUM_QUERIES", num_denoising, config=CONFIG)


def memory_of(batch_size):
    return Memory(torch.zeros(batch_size, 1, 32), torch.zeros(batch_size, 1, 32))


def some_targets(counts, num_classes=80):
    boxes = torch.rand(sum(counts), 4) * 0.4 + 0.3
    labels = torch.randint(num_classes, (sum(counts),))
    return BoxTargets(labels, boxes, counts=list(counts))


def test_slots_of_two_groups_and_two_repetitions_by_hand():
    """Images with 2 and 1 targets: a repetition is two slots wide, a group has P = 4."""
    image, slots = locate_targets(some_targets((2, 1)), QueryGroups(N, 2, 4), copies=2)
    assert image.tolist() == [0, 0, 1]
    assert slots.tolist() == [[[0, 1, 0], [2, 3, 2]], [[4, 5, 4], [6, 7, 6]]]


def test_mask_by_hand():
    mask = denoising_mask(2, 1, QueryGroups(2, 1, 2), torch.device("cpu"))
    assert mask.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    "counts, wanted, queries", [((3, 2), 7, 6), ((9, 2), 7, 9), ((0, 3), 7, 6), ((0, 0), 7, 0)]
)
def test_number_of_denoising_queries(counts, wanted, queries):
    """Whole repetitions of the fullest image, at least one; none without targets."""
    model = dn_model(2, wanted)
    batch = make_batch(counts)
    targets = model.build_targets(batch)
    made, groups, slots = model.head.denoising(
        model.head.queries(memory_of(2), model.groups), model.groups, targets
    )
    assert groups.num_denoising == queries and made.content.shape[1] == 2 * (queries + N)
    repetitions = queries // max(counts) if max(counts) else 1
    assert len(slots.target) == 2 * repetitions * sum(counts)


def test_noise_stays_in_bounds_at_its_rate_and_leaves_the_targets_alone():
    torch.manual_seed(0)
    part = LabelDenoising(
        num_classes=10,
        d_model=32,
        num_queries=1,
        label_noise=0.2,
        reference_noise=CenterAndSizeNoise(0.4, eps=1e-3),
    )
    targets = some_targets((400, 100), num_classes=10)
    before = targets.labels.clone(), targets.boxes.clone()
    labels, boxes = part.add_noise(targets, Noise.draw((2, 5, 500), 4, torch.device("cpu")))
    assert torch.equal(targets.labels, before[0]) and torch.equal(targets.boxes, before[1])
    changed = (labels != targets.labels).float().mean().item()
    assert abs(changed - 0.2 * 0.9) < 0.02  # one draw in ten gives the label that was there
    assert labels.min() >= 0 and labels.max() < 10
    center, size = targets.boxes[:, :2], targets.boxes[:, 2:]
    assert ((boxes[..., :2] - center).abs() <= 0.2 * size + 1e-5).all()
    assert ((boxes[..., 2:] - size).abs() <= 0.4 * size + 1e-5).all()
    assert len(boxes[0, 0].flatten().unique()) == 2000 and not torch.equal(boxes[0], boxes[1])


def test_contrastive_noise_keeps_positives_near_and_moves_negatives_away():
    torch.manual_seed(0)
    part = ContrastiveDenoising(
        num_classes=10,
        d_model=32,
        num_queries=1,
        label_noise=0.25,
        reference_noise=BorderNoise(0.5, eps=1e-3),
    )
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]] * 300)
    targets = BoxTargets(torch.zeros(300).long(), boxes, counts=[300])
    noise = Noise.draw((1, 4, 300), 4, torch.device("cpu"))
    labels, boxes = part.add_noise(targets, noise)
    assert abs((labels != 0).float().mean() - 0.25 * 0.9) < 0.03
    moved = box_cxcywh_to_xyxy(boxes) - box_cxcywh_to_xyxy(targets.boxes)
    moved = moved[0].abs() / torch.tensor([0.1, 0.2, 0.1, 0.2])  # of half the size
    assert moved[0::2].max() <= 0.5 + 1e-4 and moved[1::2].min() >= 0.5 - 1e-4
    assert moved[0::2].min() < 0.01 and moved[1::2].max() > 0.99


def test_contrastive_slots_by_hand(monkeypatch):
    """Two repetitions of [positives | negatives], a slot wide for the fullest image's targets."""
    part = ContrastiveDenoising(
        num_classes=5,
        d_model=8,
        num_queries=5,
        label_noise=0,
        reference_noise=BorderNoise(0.5, eps=1e-3),
    )
    queries = Queries(torch.zeros(2, 3, 8), torch.full((2, 3, 4), 0.5))
    targets = some_targets((2, 1), 5)
    queries, groups, slots = part(queries, QueryGroups(3), targets)
    assert groups.num_denoising == 8 and slots.repetitions == 2 and slots.background
    assert slots.query.tolist() == [0, 1, 0, 4, 5, 4] and slots.target.tolist() == [0, 1, 2] * 2
    assert slots.image.tolist() == [0, 0, 1] * 2
    filled = queries.content[:, :8].abs().sum(-1) > 0
    assert filled.int().tolist() == [[1] * 8, [1, 0] * 4]
    visible = ~queries.attn_mask[0]
    assert visible.int().tolist() == [1] * 4 + [0] * 4 + [1] * 3
    labels = part.label_embedding(targets.labels)
    torch.testing.assert_close(queries.content[0, [0, 1, 2, 3]], labels[[0, 1, 0, 1]])


def test_boxes_at_the_border_stay_inside_the_bounds_of_the_inverse_sigmoid():
    part = LabelDenoising(
        num_classes=2,
        d_model=8,
        num_queries=1,
        label_noise=0,
        reference_noise=CenterAndSizeNoise(1.0, eps=1e-3),
    )
    box = torch.tensor([[0.99, 0.01, 0.9, 0.9]])
    targets = BoxTargets(torch.tensor([0]), box, counts=[1])
    noise = Noise(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.tensor([1.0, 0, 1, 0]))
    noise.reference = noise.reference.view(1, 1, 1, 4)
    _, boxes = part.add_noise(targets, noise)
    assert inverse_sigmoid(boxes).isfinite().all() and boxes.min() > 0 and boxes.max() < 1


def test_matched_queries_take_their_content_from_the_label_embedding_at_inference_too():
    model = dn_model(2).eval()
    groups = model.groups.primary()
    queries, same, slots = model.head.denoising(
        model.head.queries(memory_of(1), groups), groups, None
    )
    unknown = model.head.denoising.label_embedding.weight[-1]
    assert slots is None and same == groups
    assert torch.equal(queries.content[0, 3], torch.cat([unknown, unknown.new_zeros(1)]))


def test_k_groups_with_denoising_equal_k_single_group_passes(monkeypatch):
    """Each group with its own noise: losses of all parts are the mean over groups."""
    model = dn_model(3).double()
    batch = make_batch()
    targets = model.build_targets(batch)
    noise = Noise.draw((3, 2, 5), 4, torch.device("cpu"))
    monkeypatch.setattr(denoising.Noise, "draw", staticmethod(lambda *_: noise))
    together = model(batch)
    bank = model.head.queries.bank.weight.detach().clone()
    alone = []
    for k in range(3):
        own = Noise(noise.flip[k : k + 1], noise.label[k : k + 1], noise.reference[k : k + 1])
        monkeypatch.setattr(denoising.Noise, "draw", staticmethod(lambda *_, own=own: own))
        with torch.no_grad():
            model.head.queries.bank.weight.copy_(move_group_to_front(bank, k, model.groups))
        single = QueryGroups(N)
        alone.append(model.criterion(model.predict(batch, single, targets), targets, single))
    assert any("_dn" in name for name in together)
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([x[name] for x in alone]).mean())


@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_losses_have_the_same_names_whatever_the_targets(counts):
    """Processes of a training exchange them by name."""
    model = dn_model(2)
    losses = model(make_batch(counts))
    assert losses.keys() == model(make_batch()).keys()
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    assert model.head.denoising.label_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("label", [-1, 80])
def test_a_label_outside_the_classes_is_a_named_error(label):
    model, batch = dn_model(), make_batch()
    batch[1]["instances"].gt_classes[0] = label
    with pytest.raises(LabelError, match=f"image_1.jpg has an object of class {label}.*is 80"):
        model(batch)
