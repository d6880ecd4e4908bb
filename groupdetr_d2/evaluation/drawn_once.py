"""The detections that a picture shows: one of each place.

A DETR whose scores are sigmoids gives (query, class) pairs, so that the box or mask of a query is
among its detections once for every class that is likely enough.
"""

import numpy as np
import torch
from detectron2.structures import Instances

ROUNDED = 2  # digits of a pixel, or of a metre, that tell places apart


def drawn_once(instances: Instances) -> Instances:
    """Returns detections without those at the place of a better one, best first.

    Places are `pred_boxes3d` or `pred_boxes`, and `pred_masks` where there are some. True objects
    are returned as they are.
    """
    if not instances.has("scores"):
        return instances
    instances = instances[instances.scores.argsort(descending=True, stable=True)]
    places = _places(instances)
    _, first, number = np.unique(places, axis=0, return_index=True, return_inverse=True)
    if not instances.has("pred_masks"):
        return instances[torch.from_numpy(np.sort(first))]
    kept: dict[int, list[int]] = {}
    for i, place in enumerate(number.ravel().tolist()):
        own = kept.setdefault(place, [])
        masks = instances.pred_masks
        if not any(torch.equal(masks[i], masks[j]) for j in own):
            own.append(i)
    return instances[
        torch.tensor(sorted(i for own in kept.values() for i in own), dtype=torch.long)
    ]


def _places(instances: Instances) -> np.ndarray:
    boxes = instances.pred_boxes3d if instances.has("pred_boxes3d") else instances.pred_boxes.tensor
    return np.nan_to_num(boxes.detach().cpu().double().numpy()).round(ROUNDED)
