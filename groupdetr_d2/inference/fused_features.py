"""Test-time augmentation by query features: one set of queries looks at all sizes of an image.

The Group DETR paper fuses query features across scales, and the predictions on an image and on its
mirror image (Appendix B and footnote 4), without saying how. Here references relative to the image
make queries correspond: all sizes share those of one leading size, in which the first stage of a
two-stage model chooses, and after every decoder layer the queries of all sizes are averaged. On
mirrored views the same queries start from mirrored references. Their features mean the opposite
direction and stay apart from the others; class probabilities and boxes are averaged, query by
query.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.data.transforms import Augmentation
from torch import nn

from ..errors import UserError
from ..modeling.meta_arch import SetPredictor
from ..modeling.mirroring import mirrored_queries
from ..structures import Memory, Predictions
from .views import view_of


class FusedFeaturesModel(nn.Module):
    """A model whose queries see every image in several sizes (TEST.AUG.FUSION features).

    Takes what the model takes, with the image in its original size under "original" (3, H, W). The
    best (query, class) pairs are detections, as they are without augmentation.

    Args:
        resizes: of an image, one for each size in which it is seen. The one whose result is nearest
            to the input's "image" leads.
        flip: whether each of them is seen mirrored, too.

    Raises:
        UserError: queries of the model's task have no mirror image.
    """

    def __init__(self, model: SetPredictor, *, resizes: Sequence[Augmentation], flip: bool):
        super().__init__()
        if model.task.fuse_flips is None:
            raise UserError(
                f"{type(model).__name__} has no fusion of query features: set TEST.AUG.FUSION "
                "boxes, or TEST.AUG.ENABLED False if it has no test-time augmentation at all"
            )
        self.model, self.fuse_flips = model, model.task.fuse_flips
        self.resizes, self.flip = list(resizes), flip

    @property
    def detections_per_image(self) -> int:
        """The number of detections that the model keeps."""
        return self.model.detections_per_image

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detects on each image; returns what the model returns in evaluation."""
        return [self._detect(x) for x in batched_inputs]

    def _detect(self, x: dict) -> dict:
        image = x.get("original", x["image"])
        views = leading_first([view_of(image, r, x) for r in self.resizes], x)
        return self.model.postprocess(self._predict(views), views[:1])[0]

    def _predict(self, views: list[dict]) -> Predictions:
        """Predicts on one image from its views, the leading one first."""
        head, groups = self.model.head, self.model.groups.primary()
        memory = self._encode(views)
        queries = head.queries(memory, groups)
        predictions = head.decode(memory, groups, queries=queries)
        if not self.flip:
            return predictions
        del memory  # of large images it is large
        memory = self._encode([{**x, "image": x["image"].flip(2)} for x in views])
        queries = mirrored_queries(head.queries, queries, memory, groups)
        return self.fuse_flips(predictions, head.decode(memory, groups, queries=queries))

    def _encode(self, views: list[dict]) -> Memory:
        """Computes the memory of the first view, with those of the other ones."""
        leading, *others = [self.model.encode([x]) for x in views]
        return replace(leading, other_sizes=tuple(others))


def leading_first(views: list[dict], x: dict) -> list[dict]:
    """Puts the view first that is nearest in size to the input's "image", the larger of two."""
    own = sum(x["image"].shape[-2:])

    def distance(view: dict) -> tuple[int, int]:
        size = sum(view["image"].shape[-2:])
        return abs(size - own), -size

    first = min(range(len(views)), key=lambda i: distance(views[i]))
    return [views[first], *views[:first], *views[first + 1 :]]
