"""The names of nuScenes are those of PETR's checkpoints and of the benchmark."""

import pytest

from groupdetr_d2.data.nuscenes.checking import OTHER_CATEGORIES
from groupdetr_d2.data.nuscenes.names import CLASS_OF_CATEGORY, CLASS_RANGE, CLASSES


def test_labels_have_the_order_of_petrs_checkpoints():
    assert CLASSES == (
        *("car", "truck", "construction_vehicle", "bus", "trailer", "barrier"),
        *("motorcycle", "bicycle", "pedestrian", "traffic_cone"),
    )


def test_categories_and_ranges_are_those_of_the_devkit():
    utils = pytest.importorskip("nuscenes.eval.detection.utils", reason="nuscenes-devkit is absent")
    config = pytest.importorskip("nuscenes.eval.detection.config")
    categories = [*CLASS_OF_CATEGORY, *OTHER_CATEGORIES]
    theirs = {name: utils.category_to_detection_name(name) for name in categories}
    assert theirs == {**dict.fromkeys(OTHER_CATEGORIES), **CLASS_OF_CATEGORY}
    assert len(categories) == 23  # as nuScenes has
    assert config.config_factory("detection_cvpr_2019").class_range == CLASS_RANGE
