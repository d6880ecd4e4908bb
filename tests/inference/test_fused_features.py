"""Test-time augmentation by query features: its five properties, and what is refused."""

from functools import cache, partial

import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2 import Predictor
from groupdetr_d2.config.choices import ChoiceError
from groupdetr_d2.data.resize import ResizeShortestSide
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference.augmented import build_augmented_model
from groupdetr_d2.inference.fused_features import FusedFeaturesModel
from groupdetr_d2.layers.box_ops import mirrored
from groupdetr_d2.layers.position_encoding import sine_embedding
from groupdetr_d2.losses.box2d import BoxPredictions
from groupdetr_d2.modeling import mirroring, two_stage
from groupdetr_d2.structures import Memory, Queries
from groupdetr_d2.tasks.boxes import fuse_flips
from groupdetr_d2.variants import conditional_detr, dab_deformable_detr, dab_detr
from tests.conftest import MASK2FORMER, SMALL_MASK_BACKBONE, make_image, small_config, small_model
from tests.inference.test_predict import make_checkpoint, picture
from tests.test_configs import copy_group

CONFIGS = {
    "Conditional": "ConditionalDETR/conditional_detr_R_50_12ep",
    "DN": "DN-DETR/dn_detr_R_50_12ep",
    "SAM": "SAM-DETR/sam_detr_R_50_12ep",
    "Deformable": "Deformable-DETR/deformable_detr_R_50_50ep",
    "Deformable, two-stage": "Deformable-DETR/deformable_detr_two_stage_R_50_50ep",
    "DAB-Deformable": "DAB-Deformable-DETR/dn_dab_deformable_detr_R_50_50ep",
    "DAB-Deformable, two-stage": "DAB-Deformable-DETR/dab_deformable_detr_two_stage_R_50_50ep",
    "DINO": "DINO/dino_4scale_R_50_12ep",
}
TWO_STAGE = ["Deformable, two-stage", "DAB-Deformable, two-stage", "DINO"]
SAM = f"configs/{CONFIGS['SAM']}.yaml"
MIRRORED = ["Conditional", "DAB-Deformable", *TWO_STAGE]
SIZES = (65, 97, 81)  # odd ones, which strided convolutions see alike from left and right


def build(name, num_groups=1):
    config = f"configs/{CONFIGS[name]}.yaml"
    return small_model(num_groups, "MODEL.DETR.NUM_CLASSES", 2, config=config).eval()


shared = cache(build)  # for tests that leave it as it is


def fused(model, sizes, flip):
    """The detections with test-time augmentation, on the image that `image_of` gives."""
    resizes = [ResizeShortestSide(size) for size in sizes]
    return partial(detect, FusedFeaturesModel(model, resizes=resizes, flip=flip))


def detect(model, x):
    (found,) = model([x])
    return found["instances"]


def image_of(size=65, seed=0):
    return make_image(size, size, 0, seed)


def assert_same(found, expected, **tolerance):
    tolerance = tolerance or {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.scores, expected.scores, **tolerance)
    pixels = {**tolerance, "atol": 100 * tolerance["atol"]}
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, **pixels)
    assert torch.equal(found.pred_classes, expected.pred_classes)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_view_without_a_flip_is_plain_evaluation(name):
    x = make_image(64, 96, 0, seed=0)
    with torch.no_grad():
        plain = detect(shared(name), x)
    assert_same(fused(shared(name), (64,), False)(x), plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_of_a_view_are_that_view_and_others_are_not(name):
    x = image_of()
    once, thrice = (fused(shared(name), (65,) * n, True)(x) for n in (1, 3))
    assert_same(thrice, once)
    assert not torch.allclose(fused(shared(name), (97, 65), True)(x).scores, once.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["Conditional", "SAM", "DAB-Deformable, two-stage", "DINO"])
def test_the_order_of_views_does_not_matter(name):
    """The leading one is found wherever it stands."""
    x = image_of()
    assert_same(*(fused(shared(name), sizes, True)(x) for sizes in (SIZES, SIZES[::-1])))


@pytest.mark.parametrize("name", ["Conditional", "DAB-Deformable", "DINO"])
def test_the_number_of_groups_does_not_matter(name):
    together, alone = build(name, 3), build(name, 1)
    copy_group(together, alone, 0)
    x = image_of()
    assert_same(fused(together, SIZES[:2], True)(x), fused(alone, SIZES[:2], True)(x))


def even_sine_embedding(coords, *rest):
    """Embeds left and right alike."""
    return (sine_embedding(coords, *rest) + sine_embedding(mirrored(coords), *rest)) / 2


class EvenPosition(torch.nn.Module):
    def __init__(self, position):
        super().__init__()
        self.position = position

    def forward(self, mask):
        pos = self.position(mask)
        return (pos + pos.flip(2)) / 2


def mirror_symmetric(model, monkeypatch):
    """Makes a model whose predictions on a mirrored image are the mirrored ones.

    Kernels are symmetric, positions even, and nothing points to a side.
    """
    for module in (conditional_detr, dab_detr, dab_deformable_detr, two_stage):
        monkeypatch.setattr(module, "sine_embedding", even_sine_embedding)
    model.head.neck.position = EvenPosition(model.head.neck.position)
    heads = [*model.head.predictor.layer_box_heads]
    if isinstance(model.head.queries, two_stage.TwoStageQueries):
        heads.append(model.head.queries.heads.box_head)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(3)) / 2)
            if hasattr(module, "sampling_offsets"):  # x before y
                module.sampling_offsets.weight[0::2] = 0
                module.sampling_offsets.bias[0::2] = 0
        for head in heads:
            for parameter in head.layers[-1].parameters():
                parameter.view(4, -1)[0] = 0
    return model


@pytest.mark.parametrize("name", MIRRORED)
def test_both_flip_states_of_a_mirror_symmetric_model_agree(name, monkeypatch):
    """Those of an ordinary one do not."""
    x = image_of()
    plain, found = (fused(shared(name), SIZES[:2], flip)(x) for flip in (False, True))
    assert not torch.allclose(found.scores, plain.scores, atol=1e-4)
    model = mirror_symmetric(build(name), monkeypatch)
    plain, found = (fused(model, SIZES[:2], flip)(x) for flip in (False, True))
    assert_same(found, plain, atol=1e-4, rtol=1e-4)


def test_a_mirrored_image_gives_mirrored_detections(monkeypatch):
    model = mirror_symmetric(build("DINO"), monkeypatch)
    x = image_of()
    found = fused(model, SIZES[:2], True)(x)
    other = fused(model, SIZES[:2], True)({**x, "image": x["image"].flip(2)})
    boxes = other.pred_boxes.tensor
    other.pred_boxes.tensor = torch.stack(
        [65 - boxes[:, 2], boxes[:, 1], 65 - boxes[:, 0], boxes[:, 3]], 1
    )
    assert_same(other, found, atol=1e-3, rtol=1e-3)


def test_content_of_mirrored_proposals_is_that_of_the_mirrored_image():
    source, groups = (model := shared("DAB-Deformable, two-stage")).head.queries, model.groups
    with torch.no_grad():
        memory, other = (model.encode([image_of(seed=seed)]) for seed in (0, 1))
        queries = source(memory, groups)
        found = source.mirrored(queries, other, groups)
        cells = two_stage.mirrored_cells(queries.cells, other)
        tokens = two_stage.gather(other.features, cells)
        expected = source.heads.features(tokens, groups)
    torch.testing.assert_close(found.content, expected)
    assert torch.equal(found.reference, mirrored(queries.reference))


def test_mirrored_cells_keep_padding_on_the_right():
    features = torch.tensor([[0, 1, 2, 9, 3, 4, 5, 9, 6, 9.0]])[..., None]  # 2 x 4 and 1 x 2
    flipped = torch.tensor([[2, 1, 0, 9, 5, 4, 3, 9, 6, 9.0]])[..., None]
    memory = Memory(flipped, flipped, flipped[..., 0] == 9, ((2, 4), (1, 2)))
    cells = torch.arange(10)[None]
    found = two_stage.gather(flipped, two_stage.mirrored_cells(cells, memory))
    assert torch.equal(found, features)


def test_means_of_flip_states_are_exact():
    logits, boxes = torch.tensor([[[[-90.0, 2.0, 30.0]]]]), torch.tensor([[[[0.2, 0.5, 0.1, 0.3]]]])
    found = fuse_flips(BoxPredictions(logits, boxes), BoxPredictions(logits, mirrored(boxes)))
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.boxes, boxes)
    found = fuse_flips(BoxPredictions(logits, boxes), BoxPredictions(-logits, boxes))
    torch.testing.assert_close(found.logits.sigmoid(), torch.full_like(logits, 0.5))
    torch.testing.assert_close(found.boxes, torch.tensor([[[[0.5, 0.5, 0.1, 0.3]]]]))


def test_predictors_fuse_features(tmp_path):
    weights = make_checkpoint(tmp_path)
    opts = ["TEST.AUG.ENABLED", True, "TEST.AUG.FUSION", "features", "TEST.AUG.FLIP", False]
    plain = Predictor(weights, threshold=0.0)(picture())
    one = Predictor(weights, threshold=0.0, opts=[*opts, "TEST.AUG.SCALES", (1.0,)])
    assert isinstance(one.detector, FusedFeaturesModel)
    assert_same(one(picture()).instances, plain.instances, atol=0, rtol=0)
    many = Predictor(weights, threshold=0.0, opts=opts)(picture())
    assert len(many.instances) == len(plain.instances)
    assert not torch.equal(many.instances.scores, plain.instances.scores)


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(ChoiceError, match="TEST.AUG.FUSION is 'all'; it can be boxes or features"):
        build_model(small_config(SAM, 1, "TEST.AUG.FUSION", "all"))
    cfg = small_config(MASK2FORMER, 1, *SMALL_MASK_BACKBONE, "TEST.AUG.FUSION", "features")
    with pytest.raises(UserError, match="GroupMask2Former has no fusion of query features"):
        build_augmented_model(cfg, build_model(cfg))
    source, position = torch.nn.Identity(), torch.zeros(1, 5, 8)
    with pytest.raises(UserError, match="no points or boxes .* set TEST.AUG.FUSION boxes"):
        queries = Queries(content=position, reference=position)
        mirroring.mirrored_queries(source, queries, Memory(position, position), None)
