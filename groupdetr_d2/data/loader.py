"""Data loaders whose order and augmentation depend on the seed and the iteration alone.

A run that was interrupted therefore continues with the images, crops and flips that it would have
seen, whatever the number of workers. Everything else is Detectron2's loader.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from .detr_augmentation import build_detr_augmentation
from .image_file import ImageReadError


class TrainingSet(Dataset):
    """Serialised dataset dicts that know the number of their draw: key = draw * length + index.

    Attributes:
        is_wide: per image, whether its width exceeds its height.
    """

    def __init__(self, dataset_dicts: list[dict]):
        self.dicts = DatasetFromList(dataset_dicts, copy=False)
        self.is_wide = [d["width"] > d["height"] for d in dataset_dicts]

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: int) -> dict:
        draw, index = divmod(key, len(self.dicts))
        return {**self.dicts[index], "draw": draw}


class SeededMapper:
    """Detectron2's mapper, with random numbers that are a function of the seed and the draw."""

    def __init__(self, mapper: DatasetMapper, seed: int):
        self.mapper, self.seed = mapper, seed

    def __call__(self, dataset_dict: dict) -> dict:
        """A dataset dict with "image" (3, H, W) and, in training, "instances"."""
        draw = dataset_dict.pop("draw", None)
        if draw is not None:
            np.random.seed(np.random.SeedSequence([self.seed, draw]).generate_state(4))
        try:
            return self.mapper(dataset_dict)
        except Exception as error:
            name = dataset_dict["file_name"]
            raise ImageReadError(
                f"image {name} cannot be used ({type(error).__name__}: {error}). Mend or replace "
                "the file, or take it out of the annotations"
            ) from error


class TrainingSampler(Sampler):
    """An endless stream of shuffled draws, in runs of one batch of like aspect ratio.

    Args:
        is_wide: per image, whether its width exceeds its height; batches do not mix the two, which
            saves padding. None mixes.
        batch_size: of this process.
        start_iter: batches to pass over, as if they had been drawn.
    """

    def __init__(
        self,
        size: int,
        *,
        is_wide: list[bool] | None,
        batch_size: int,
        seed: int,
        start_iter: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.is_wide = is_wide or [False] * size
        self.start_iter, self.rank, self.world_size = start_iter, rank, world_size

    def __iter__(self) -> Iterator[int]:
        first = self.start_iter * self.batch_size
        return itertools.islice(self._keys(), first, None)

    def _keys(self) -> Iterator[int]:
        buckets: dict[bool, list[int]] = {False: [], True: []}
        for draw, index in itertools.islice(self._draws(), self.rank, None, self.world_size):
            bucket = buckets[self.is_wide[index]]
            bucket.append(draw * self.size + index)
            if len(bucket) == self.batch_size:
                yield from bucket
                bucket.clear()

    def _draws(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed)
        numbers = itertools.count()
        while True:
            order = torch.randperm(self.size, generator=generator).tolist()
            yield from zip(itertools.islice(numbers, self.size), order, strict=True)


def build_train_loader(cfg, training_set: TrainingSet, start_iter: int = 0):
    """Endless batches of SOLVER.IMS_PER_BATCH / processes images, from batch `start_iter` on."""
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    sampler = TrainingSampler(
        len(training_set),
        is_wide=training_set.is_wide if grouped else None,
        batch_size=batch_size,
        seed=cfg.SEED,
        start_iter=start_iter,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return build_detection_train_loader(
        dataset=training_set,
        mapper=SeededMapper(build_mapper(cfg, is_train=True), cfg.SEED),
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,  # the sampler's
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(cfg, dataset_name: str):
    """One image a batch, as the official codes evaluate."""
    return build_detection_test_loader(
        get_detection_dataset_dicts([dataset_name], filter_empty=False),
        mapper=SeededMapper(build_mapper(cfg, is_train=False), cfg.SEED),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_mapper(cfg, is_train: bool) -> DatasetMapper:
    """Detectron2's mapper with DETR's augmentation."""
    return DatasetMapper(
        is_train=is_train,
        augmentations=build_detr_augmentation(cfg, is_train),
        image_format=cfg.INPUT.FORMAT,
    )
