"""What each group of queries detects by itself."""

from detectron2.structures import Instances

from ..groups import QueryGroups
from ..modeling.meta_arch import SetPredictor
from ..structures import Predictions


def detections_by_group(
    model: SetPredictor, predictions: Predictions, groups: QueryGroups, image: dict
) -> list[Instances]:
    """Every group's detections on an image, on the CPU, as if it were the primary group."""
    parts = [predictions.of_group(k, groups) for k in groups.numbers()]
    return [model.postprocess(part, [image])[0]["instances"].to("cpu") for part in parts]
