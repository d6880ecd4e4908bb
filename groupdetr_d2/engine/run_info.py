"""What a checkpoint has to carry so that it can be used without its configuration file."""

from detectron2.data import MetadataCatalog


class RunInfo:
    """The configuration and the class names, saved with every checkpoint."""

    def __init__(self, cfg):
        self.config = cfg.dump()
        self.classes = class_names(cfg)

    def state_dict(self) -> dict:
        """Plain values."""
        return {"config": self.config, "classes": self.classes}

    def load_state_dict(self, state_dict: dict) -> None:
        """A resumed run keeps its own."""


def class_names(cfg) -> list[str]:
    """The names of the training (or else test) set's classes; numbers where it has none."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes:
            return list(classes)
    return [str(i) for i in range(cfg.MODEL.DETR.NUM_CLASSES)]
