"""Data: DETR's augmentation, reproducible loading, checks, own and generated data sets."""
