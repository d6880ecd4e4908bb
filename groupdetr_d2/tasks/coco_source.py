"""The registered data sets of COCO's kind, with and without masks."""

from functools import partial

from ..data.catalog import columns_of_set, images_of
from .task import DataSource


def coco_source(*, with_masks: bool) -> DataSource:
    """Makes the source of a task whose annotations are boxes, or boxes and masks."""

    def class_names(name: str) -> tuple[str, ...]:
        return tuple(columns_of_set(name).class_names)

    def fingerprint(name: str) -> str:
        return columns_of_set(name, with_masks=with_masks).fingerprint

    return DataSource(partial(images_of, with_masks=with_masks), class_names, fingerprint)
