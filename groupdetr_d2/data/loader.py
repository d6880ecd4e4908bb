"""Data loaders whose order and augmentation depend on the seed and the iteration alone.

A run that was interrupted therefore continues with the images, crops and flips that it would have
seen, whatever the number of workers.
"""

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.detection_utils import (
    annotations_to_instances,
    check_image_size,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import Instances
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from .coco_columns import JoinedImages
from .image_file import ImageReadError, channels_first, read_array
from .image_set import ImageSet
from .workers import leave_signals_to_parent


class TrainingSet(Dataset):
    """Serialised dataset dicts, indexed by draw * length + index.

    Random numbers of an item, be they numpy's, PyTorch's or Python's, are a function of the seed
    and the draw, whatever the mapper does with them.

    Args:
        mapper: makes an item from a dataset dict; without one, items are those dicts with "draw",
            the number of their draw.
        skips: whether an image that cannot be used is replaced by the next one, and
            named in that item's "skipped".

    Attributes:
        is_wide: per image, whether its width exceeds its height.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict],
        mapper: Callable | None = None,
        *,
        skips: bool = False,
        seed: int = 0,
    ):
        if isinstance(dataset_dicts, JoinedImages):  # small, and shared by processes, as it is
            self.dicts: Sequence[dict] = dataset_dicts
            self.is_wide = (dataset_dicts.sizes[:, 0] > dataset_dicts.sizes[:, 1]).tolist()
        else:
            self.dicts = DatasetFromList(dataset_dicts, copy=False)
            self.is_wide = [d["width"] > d["height"] for d in dataset_dicts]
        self.mapper, self.skips, self.seed = mapper, skips, seed

    def mapped(self, mapper: Callable, *, skips: bool, seed: int) -> "TrainingSet":
        """Returns the same set with a mapper."""
        other = copy.copy(self)
        other.mapper, other.skips, other.seed = mapper, skips, seed
        return other

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: int) -> dict:
        draw, index = divmod(key, len(self.dicts))
        skipped: list[str] = []
        for candidate in self._candidates(index):
            d = self.dicts[candidate]
            if self.mapper is None:
                return {**d, "draw": draw}
            seed_everything(self.seed, draw)
            try:
                return {**self.mapper(d), "skipped": skipped}
            except ImageReadError as error:
                if not self.skips:
                    raise
                skipped.append(str(error))
        raise ImageReadError(f"no image of the data set can be used; the first: {skipped[0]}")

    def _candidates(self, index: int) -> Iterator[int]:
        """Yields the image itself, then the others, those of its batch's shape first."""
        yield index
        order = [(index + i) % len(self.dicts) for i in range(1, len(self.dicts))]
        yield from sorted(order, key=lambda i: self.is_wide[i] != self.is_wide[index])


def seed_everything(seed: int, draw: int) -> None:
    """Seeds numpy, Python's `random` and PyTorch's random numbers on the CPU for one draw.

    `torch.manual_seed` would, for every image, prepare calls to all kinds of devices, too.
    """
    state = np.random.SeedSequence([seed, draw]).generate_state(4)
    np.random.seed(state)
    torch.default_generator.manual_seed(int(state[0]))
    random.seed(int(state[0]))


class DetectionMapper:
    """Makes a model's input from a dataset dict, as Detectron2's `DatasetMapper` does.

    Files of any mode and bit depth can be read.

    Args:
        image_format: RGB or BGR.
        annotation_fields: the fields of an annotation that "instances" are made from.
        keeps_original: whether to keep the unresized image, too, as "original" (3, H, W).
        build_instances: ``(objects, transforms, size, new size) -> Instances``, from annotations
            with those fields and the (height, width) of the image before and after the transforms.
    """

    def __init__(
        self,
        augmentations: list[T.Augmentation],
        *,
        image_format: str,
        is_train: bool,
        annotation_fields: Sequence[str],
        keeps_original: bool = False,
        build_instances: Callable[..., Instances] | None = None,
    ):
        self.build_instances = build_instances or box_instances
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format, self.is_train = image_format, is_train
        self.annotation_fields = tuple(x for x in annotation_fields if x != "iscrowd")
        self.keeps_original = keeps_original

    def __call__(self, dataset_dict: dict) -> dict:
        """Returns the dict with "image" (3, H, W) uint8 and, in training, "instances".

        Raises:
            ImageReadError: naming the file and the remedy.
        """
        try:
            return self._map(dict(dataset_dict))
        except Exception as error:
            name = dataset_dict["file_name"]
            raise ImageReadError(
                f"image {name} cannot be used ({type(error).__name__}: {error}). Mend or replace "
                "the file, or take it out of the annotations; DATALOADER.ON_ERROR skip goes on "
                "without it in training"
            ) from error

    def _map(self, d: dict) -> dict:
        image = read_array(d["file_name"], self.image_format)
        check_image_size(d, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        d["image"] = channels_first(augmented.image)
        if self.keeps_original:
            d["original"] = channels_first(image)
        annotations = d.pop("annotations", ())
        if self.is_train:
            objects = [
                {key: a[key] for key in self.annotation_fields}
                for a in annotations
                if not a.get("iscrowd", 0)
            ]
            before = (image.shape[0], image.shape[1])
            d["instances"] = self.build_instances(objects, transforms, before, size)
        return d


def box_instances(
    objects: Sequence[dict],
    transforms: T.TransformList,
    size: tuple[int, int],
    new_size: tuple[int, int],
) -> Instances:
    """Makes `gt_boxes` and `gt_classes`; objects out of sight are left out."""
    kept = [transform_instance_annotations(x, transforms, new_size) for x in objects]
    return filter_empty_instances(annotations_to_instances(kept, new_size))


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


def build_train_loader(
    cfg, training_set: TrainingSet, mapper: Callable, start_iter: int = 0
) -> DataLoader:
    """Builds endless batches of SOLVER.IMS_PER_BATCH / processes images.

    Args:
        mapper: makes a model's input from a dataset dict.
        start_iter: the first batch, as if those before it had been drawn.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    sampler = TrainingSampler(
        len(training_set),
        is_wide=training_set.is_wide if grouped else None,
        batch_size=batch_size,
        seed=seed,
        start_iter=start_iter,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return DataLoader(
        training_set.mapped(mapper, skips=cfg.DATALOADER.ON_ERROR == "skip", seed=seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
    )


def start_from(loader: object, *, start_iter: int, seed: int) -> bool:
    """Makes a loader of :func:`build_train_loader` begin at a batch, with another seed.

    Returns:
        whether it is such a loader; any other one is left as it is.
    """
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    if not isinstance(dataset, TrainingSet) or not isinstance(sampler, TrainingSampler):
        return False
    sampler.start_iter, sampler.seed, dataset.seed = start_iter, seed, seed
    return True


class SameSizeBatches(Sampler):
    """The images of this process once each, in batches of images of one size.

    No image is padded to the size of another, so that detections do not depend on the batch.

    Args:
        sizes: (N, 2), width and height of each image.
        batch_size: the most images of a batch; with 1 the order of the images is kept.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int):
        self.batches: list[list[int]] = []
        growing: dict[tuple[int, int], list[int]] = {}
        for index in InferenceSampler(len(sizes)) if len(sizes) else ():
            batch = growing.setdefault(tuple(sizes[index].tolist()), [])
            if not batch:
                self.batches.append(batch)
            batch.append(index)
            if len(batch) == batch_size:
                growing.pop(tuple(sizes[index].tolist()))

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def build_test_loader(cfg, images: ImageSet, mapper: Callable) -> DataLoader:
    """Builds batches of TEST.IMS_PER_BATCH images of one size; the official codes take one."""
    return DataLoader(
        MapDataset(images, mapper),
        batch_sampler=SameSizeBatches(images.sizes, cfg.TEST.IMS_PER_BATCH),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
