"""The start of analyses of checkpoints: the model with all its groups, and annotated images."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
)

from ..checkpoint.restoring import restore
from ..data.checks import check_registered
from ..engine.setup import settle_config
from ..errors import UserError
from ..groups import QueryGroups
from ..modeling.meta_arch import SetPredictor, task_of
from ..modeling.two_stage import TwoStageQueries
from ..structures import Matches, Predictions, Targets
from ..tasks.task import Task


@dataclass
class TrainedModel:
    """A trained model with its configuration and its first test set."""

    cfg: CfgNode
    model: SetPredictor  # in evaluation mode, with the groups that it was trained with
    weights: Path
    dataset: str  # the first of DATASETS.TEST

    @property
    def task(self) -> Task:
        """The task of the model."""
        return task_of(self.cfg)

    @property
    def class_names(self) -> list[str]:
        """The names of the data set's classes."""
        return MetadataCatalog.get(self.dataset).thing_classes

    def annotated_images(self, number: int | None = None) -> Iterator[dict]:
        """Yields images of the test set, resized as for evaluation, with "instances"."""
        mapper = self.task.build_mapper(self.cfg, is_train=False)
        mapper.is_train = True  # with what there is to find
        images = self.task.data.images_of(self.dataset, is_evaluated=True)
        dicts = images[:number]
        loader = build_detection_test_loader(
            dicts, mapper=mapper, num_workers=self.cfg.DATALOADER.NUM_WORKERS
        )
        return itertools.chain.from_iterable(loader)


def load(weights: str | Path, opts: list[str]) -> TrainedModel:
    """Builds the model of a checkpoint from the configuration that it carries.

    Raises:
        UserError: there is no checkpoint, or no data set to test on.
    """

    def settle(cfg: CfgNode) -> None:
        cfg.DATASETS.TRAIN = ()  # it may not be on this machine
        cfg.DATASETS.CUSTOM.TRAIN_JSON = cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
        settle_config(cfg)
        if not cfg.DATASETS.TEST:
            raise UserError(
                f"{weights} was trained without a test set: name one, DATASETS.TEST "
                "\"('name',)\" or DATASETS.CUSTOM.VAL_JSON and VAL_IMAGES"
            )
        check_registered(cfg.DATASETS.TEST)
        task_of(cfg).data.check_classes(cfg, cfg.DATASETS.TEST)
        torch.manual_seed(0)

    restored = restore(weights, opts, settle=settle)
    cfg = restored.cfg
    return TrainedModel(cfg, restored.model, Path(weights), cfg.DATASETS.TEST[0])


def matches_of(
    model: SetPredictor, predictions: Predictions, targets: Targets, groups: QueryGroups
) -> Matches:
    """Matches queries with targets; points that are drawn for it are the same each time."""
    generator = torch.Generator(model.device).manual_seed(0)
    prepared = model.criterion.prepare(predictions, targets, generator)
    return model.criterion.match(*prepared, groups)


def check_one_to_one(trained: TrainedModel) -> None:
    """Checks that queries can be followed through matchings.

    In a two-stage model a query is a rank among proposals, which is another one on every image and
    at every checkpoint; with naive one-to-many assignment a target has many queries.
    """
    is_two_stage = isinstance(trained.model.head.queries, TwoStageQueries)
    if is_two_stage or trained.model.criterion.matches_per_target != 1:
        raise UserError(
            f"{trained.weights}: this analysis follows learned queries matched one-to-one; it says "
            "nothing of models with two stages (dino, MODEL.DETR.TWO_STAGE) or with "
            "MODEL.DETR.MATCHES_PER_TARGET above 1"
        )


def check_sees_images(task: Task, weights: str | Path) -> None:
    """Checks that a model sees single images.

    Raises:
        UserError: it sees several cameras at once.
    """
    if task.sees != "images":
        raise UserError(
            f"{weights}: this analysis is about boxes and masks on single images, and the model "
            f"sees {task.sees}; analyze groups, stability and convergence know such models"
        )


def checkpoints_of(folder: str | Path) -> dict[int, Path]:
    """Finds the numbered checkpoints of a folder, by number of iterations done.

    Raises:
        UserError: there are fewer than two.
    """
    found = {
        int(path.stem.removeprefix("model_")) + 1: path
        for path in Path(folder).glob("model_*.pth")
        if path.stem.removeprefix("model_").isdigit()
    }
    if len(found) < 2:
        raise UserError(
            f"{folder} has {len(found)} numbered checkpoints (model_*.pth): at least two are "
            "needed, see SOLVER.CHECKPOINT_PERIOD"
        )
    return dict(sorted(found.items()))
