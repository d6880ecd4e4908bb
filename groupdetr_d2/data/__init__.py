"""Data: DETR's augmentation, reproducible loading, checks, own and generated data sets."""

from .nuscenes.catalog import register_nuscenes
from .objects365 import register_objects365

register_nuscenes()
register_objects365()
