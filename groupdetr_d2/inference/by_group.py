"""The detections of each group of queries by itself."""

from detectron2.structures import Instances

from ..groups import QueryGroups
from ..modeling.meta_arch import SetPredictor
from ..structures import Predictions


def detections_by_group(
    model: SetPredictor, predictions: Predictions, groups: QueryGroups, image: dict
) -> list[Instances]:
    """Postprocesses every group's predictions on an image as the primary group's, on the CPU."""
    return [
        detections_of_group(model, predictions, groups, [image], k)[0] for k in groups.numbers()
    ]


def detections_of_group(
    model: SetPredictor,
    predictions: Predictions,
    groups: QueryGroups,
    images: list[dict],
    group: int,
) -> list[Instances]:
    """Postprocesses one group's predictions on images as the primary group's, on the CPU."""
    part = predictions.of_group(group, groups)
    return [x["instances"].to("cpu") for x in model.postprocess(part, images)]
