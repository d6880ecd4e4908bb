"""DETR's training augmentation (Carion et al., ECCV 2020) from Detectron2's parts."""

from detectron2.data import transforms as T

from .resize import ResizeShortestSide


def build_detr_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Builds DETR's augmentation; evaluation resizes alone.

    Training flips, with probability 0.5 resizes and crops, and resizes the shorter side.
    """
    if not is_train:
        return [ResizeShortestSide(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
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
