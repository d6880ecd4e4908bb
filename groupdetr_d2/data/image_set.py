"""The protocols of a checked data set and of a mapper, whatever a task's images are."""

from collections.abc import Iterator
from typing import Any, Protocol, overload

import numpy as np


class ImageSet(Protocol):
    """A sequence of dataset dicts, made one by one."""

    @property
    def counts(self) -> np.ndarray:
        """The objects of each image, (N,)."""

    @property
    def sizes(self) -> np.ndarray:
        """The width and height of each image, (N, 2)."""

    def with_objects(self) -> "ImageSet":
        """Returns the set without images that have no objects."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict]: ...

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...


class Mapper(Protocol):
    """Makes a model's input from a dataset dict."""

    is_train: bool  # whether "instances" are made

    def __call__(self, dataset_dict: dict, /) -> dict:
        """Returns the model's input."""
