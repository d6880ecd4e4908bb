"""The registered data sets of COCO's kind, with and without masks."""

from functools import partial

from ..data.catalog import columns_of_set, images_of
from ..data.label_statistics import label_rows
from .task import DataSource


def coco_source(*, with_masks: bool) -> DataSource:
    """Makes the source of a task whose annotations are boxes, or boxes and masks."""

    def class_names(name: str) -> tuple[str, ...]:
        return tuple(columns_of_set(name).class_names)

    def fingerprint(name: str) -> str:
        return columns_of_set(name, with_masks=with_masks).fingerprint

    def rows(name: str) -> list[dict]:
        images = images_of(name, is_evaluated=True, with_masks=with_masks)
        return label_rows(images.columns)

    images = partial(images_of, with_masks=with_masks)
    return DataSource(images, class_names, fingerprint, rows)
