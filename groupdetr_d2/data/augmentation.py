"""Training augmentations from Detectron2's parts.

DETR's (Carion et al., ECCV 2020), and large-scale jitter (Ghiasi et al., CVPR 2021), which
Mask2Former trains with.
"""

from detectron2.data import transforms as T

from .resize import ResizeJitter, ResizeShortestSide

PADDING = 128.0  # value of pixels beyond the image, as in the official code


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Builds the augmentation of INPUT.*; evaluation resizes alone."""
    if not is_train:
        return [ResizeShortestSide(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    return large_scale_jitter(cfg) if cfg.INPUT.IMAGE_SIZE else detr_augmentation(cfg)


def large_scale_jitter(cfg) -> list[T.Augmentation]:
    """Builds flipping, resizing at random, and cropping or padding to INPUT.IMAGE_SIZE."""
    side = cfg.INPUT.IMAGE_SIZE
    flip = [T.RandomFlip()] if cfg.INPUT.RANDOM_FLIP != "none" else []
    return [
        *flip,
        ResizeJitter(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side),
        # masks are padded with 0: Detectron2's 255 would make padding part of every RLE
        T.FixedSizeCrop((side, side), pad_value=PADDING, seg_pad_value=0),
    ]


def detr_augmentation(cfg) -> list[T.Augmentation]:
    """Builds DETR's: flip, with probability 0.5 resize and crop, and resize the shorter side."""
    augmentation = [T.RandomFlip()] if cfg.INPUT.RANDOM_FLIP != "none" else []
    if cfg.INPUT.CROP.ENABLED:
        crop = T.AugmentationList(
            [
                ResizeShortestSide(cfg.INPUT.CROP.MIN_SIZE, sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        )
        augmentation.append(T.RandomApply(crop, 0.5))
    resize = ResizeShortestSide(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    return [*augmentation, resize]
