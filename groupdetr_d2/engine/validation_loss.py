"""The losses of a model on a test set, from the forward passes of its evaluation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from ..groups import QueryGroups
from ..losses.criterion import Normalizers, SetCriterion
from ..modeling.meta_arch import SetPredictor
from ..structures import Predictions

TOTAL = "total_loss"


class LossMeter(nn.Module):
    """A model that is evaluated, and its losses on inputs that have "instances".

    Losses are those of the primary group's queries, matched as in training, and without dropout:
    the sum over all images, divided as that of one large batch would be. Denoising queries and
    first stages, which are there for training, do not count. Random numbers of a loss come from
    a generator of its own.
    """

    def __init__(self, model: SetPredictor):
        super().__init__()
        self.model = model
        self.train(model.training)
        self.sums: dict[str, Tensor] = {}  # of undivided losses by name, in this process
        self.counts: list[int] = []  # targets of each image

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Returns what the model returns in evaluation."""
        groups = self.model.groups.primary()
        predictions = self.model.predict(batched_inputs, groups)
        found = self.model.postprocess(predictions, batched_inputs)
        if all("instances" in x for x in batched_inputs):
            self._add(predictions, batched_inputs, groups)
        return found

    @torch.no_grad()
    def _add(
        self, predictions: Predictions, batched_inputs: list[dict], groups: QueryGroups
    ) -> None:
        targets, criterion = self.model.build_targets(batched_inputs), self.model.criterion
        predictions = replace(predictions, denoised=None, proposals=None)
        device = predictions.logits.device
        generator = torch.Generator(device).manual_seed(len(self.counts))
        with torch.autocast(device.type, enabled=False):
            losses = criterion(predictions, targets, groups, 1.0, generator=generator)
        divisors = divisors_of(criterion, targets.counts, groups, 1.0)
        for name, value in losses.items():
            known = self.sums.get(name, 0.0)
            self.sums[name] = known + value.double() * divisors[term_of(name)]
        self.counts += targets.counts

    def losses(self) -> dict[str, float]:
        """Computes "total_loss", and the last decoder layer's losses by name.

        All processes have to call it; the first one gets the losses. There are none without
        objects.
        """
        own = {name: float(value) for name, value in self.sums.items()}
        gathered = comm.gather((own, self.counts), dst=0)
        counts = [count for _, part in gathered for count in part]
        if not sum(counts):
            return {}
        groups = self.model.groups.primary()
        divisors = divisors_of(self.model.criterion, counts, groups, sum(counts))
        sums: dict[str, float] = {}
        for part, _ in gathered:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        values = {name: value / divisors[term_of(name)] for name, value in sums.items()}
        last = {name: x for name, x in values.items() if name == term_of(name)}
        return {TOTAL: sum(values.values()), **last}


def divisors_of(
    criterion: SetCriterion, counts: Sequence[int], groups: QueryGroups, num_targets: float
) -> dict[str, float]:
    """Computes what the sums of each loss are divided by, for images with so many targets."""
    times = criterion.matches_per_target
    of_targets = groups.normalizer(num_targets * times)
    normalizers = Normalizers(of_targets, [times * count for count in counts], groups)
    return {name: normalizers.of(term) for name, term in criterion.losses.items()}


def term_of(name: str) -> str:
    """Returns the name of a loss without the number of its decoder layer."""
    term, _, layer = name.rpartition("_")
    return term if layer.isdigit() else name


def loss_meter_of(cfg: CfgNode, model: nn.Module) -> LossMeter | None:
    """Makes the meter of an evaluated model; None with TEST.LOSS False, or if it has no losses.

    A model with test-time augmentation has none, nor has one whose `forward` is its own.
    """
    if not measures_loss(cfg) or not isinstance(model, SetPredictor):
        return None
    is_own = type(model).forward is not SetPredictor.forward
    return None if is_own else LossMeter(model)


def measures_loss(cfg: CfgNode) -> bool:
    """Tells whether an evaluation computes losses, for which images need their true objects."""
    return bool(cfg.TEST.LOSS and not cfg.TEST.AUG.ENABLED)
