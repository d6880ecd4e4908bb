"""The detections of each group of queries by itself."""

from detectron2.structures import Instances

from ..groups import QueryGroups
from ..modeling.meta_arch import SetPredictor
from ..structures import Predictions


def detections_by_group(
    model: SetPredictor, predictions: Predictions, groups: QueryGroups, image: dict
) -> list[Instances]:
    """Postprocesses every group's predictions on an image as the primary group's, on the CPU."""
    parts = [predictions.of_group(k, groups) for k in groups.numbers()]
    return [model.postprocess(part, [image])[0]["instances"].to("cpu") for part in parts]
