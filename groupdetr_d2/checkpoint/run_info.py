"""The part of a checkpoint by which it can be used without its configuration file."""

from detectron2.data import MetadataCatalog


class RunInfo:
    """The configuration and the class names, saved with every checkpoint.

    Args:
        data: a fingerprint of each training set, by its name.

    Attributes:
        threshold: the score with the best F1 in the last evaluation, None before the first.
        resumed: what the checkpoint of a resumed run says; None in a new one.
    """

    def __init__(self, cfg, data: dict[str, str] | None = None):
        self.config = cfg.dump()
        self.classes = class_names(cfg)
        self.data = data or {}
        self.threshold: float | None = None
        self.resumed: dict | None = None

    def state_dict(self) -> dict:
        """Returns the state for the checkpoint: plain values."""
        known = {} if self.threshold is None else {"threshold": self.threshold}
        return {"config": self.config, "classes": self.classes, "data": self.data, **known}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the threshold; a resumed run keeps its own configuration and classes."""
        self.threshold = state_dict.get("threshold")
        self.resumed = state_dict


def class_names(cfg) -> list[str]:
    """Finds the class names of the training (or else test) set; numbers where it has none."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes and len(classes) == cfg.MODEL.DETR.NUM_CLASSES:
            return list(classes)
    return [str(i) for i in range(cfg.MODEL.DETR.NUM_CLASSES)]
