"""Data: DETR's augmentation, reproducible loading, checks, own and generated data sets."""

from .nuscenes.catalog import register_nuscenes

register_nuscenes()
