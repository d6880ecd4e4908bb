"""What is right in a COCO file, and that `check-data` and training agree on it."""

import codecs
import copy
import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.coco_columns import find_in_columns
from groupdetr_d2.data.coco_file import examine, read_columns, read_fast, read_json
from groupdetr_d2.data.coco_rules import read_table
from groupdetr_d2.data.inspection import inspect_coco
from groupdetr_d2.errors import UserError
from groupdetr_d2.evaluation.coco_metrics import DetectionColumns, coco_metrics
from groupdetr_d2.tasks.boxes import BOXES
from tests.conftest import small_config
from tests.data.test_data import write_set

VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        7,
        1.0,
        0.5,
        -0.0,
        1e308,
        10**400,
        math.nan,
        math.inf,
        -math.inf,
    ),
    *(
        "",
        "a",
        "7",
        "0",
        "\ud800",
        "\0",
        "é",
        "x" * 300,
        "../a.png",
        "a\\b.png",
        [],
        {},
        [1],
        ["a"],
    ),
    *([1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 0, 0], [1, 1, math.nan, 2], [[1, 2, 3, 4]], {"id": 1}),
    *([-5, -5, 9, 9], [1e9, 1e9, 1, 1], [0, 0, 1e9, 1e9], ["1", "2", "3", "4"], [5, 5, 1e-9, 5]),
]
EXTRA = ["ignore", "score", "caption", "segmentation", "keypoints", "rotation", "attributes", "id2"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    boxes = [(2, 3, 10, 8), (20, 5, 12, 12)]
    path = write_set(folder, "train", boxes=boxes, num_images=4)
    return folder, json.loads(open(path).read())


def mutate(content, rng):
    """Changes one thing in a file, of those that tools and mishaps change."""
    content = copy.deepcopy(content)
    key = rng.choice(["images", "annotations", "annotations", "categories"])
    records = content[key]
    place = int(rng.integers(len(records)))
    kind = int(rng.integers(8))
    if kind <= 3:
        name = rng.choice(list(records[place]))
        records[place][name] = VALUES[int(rng.integers(len(VALUES)))]
    elif kind == 4:
        del records[place][rng.choice(list(records[place]))]
    elif kind == 5:
        records[place][rng.choice(EXTRA)] = VALUES[int(rng.integers(len(VALUES)))]
    elif kind == 6:
        other = [None, 5, "a", [], copy.deepcopy(records[place])][int(rng.integers(5))]
        records.insert(place, other)
    else:
        content[key] = [records[:0], records[1:], None, {}, "a", records[::-1]][
            int(rng.integers(6))
        ]
    return content


def verdict_of_training(path, image_root, name):
    """Whether a training with this file as both its sets would reach its end."""
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=path, image_root=image_root, evaluator_type="coco", bad_boxes="error"
    )
    try:
        images = images_of(name)
        mapper = BOXES.build_mapper(small_config(), is_train=True)
        assert all("instances" in mapper(d) for d in images)
        return images
    except UserError as error:
        assert str(error)
        return None
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def perfect(columns):
    """Detections that are the objects."""
    kept = ~columns.crowd
    scores = np.linspace(0.9, 0.5, kept.sum())
    parts = (columns.image_of, columns.class_of, columns.boxes)
    return DetectionColumns(*(x[kept] for x in parts), scores)


def test_mutants_get_the_same_verdict_from_both_commands(good):
    """450 of them; what is accepted is evaluated, and perfect predictions have AP 100."""
    folder, content = good
    rng = np.random.default_rng(0)
    accepted = 0
    for i in range(450):
        path = str(folder / f"mutant-{i}.json")
        with open(path, "w") as file:
            json.dump(mutate(content, rng), file)
        try:
            is_good = not inspect_coco(path, str(folder / "images")).has_errors
        except UserError as error:
            assert path in str(error)
            is_good = False
        images = verdict_of_training(path, str(folder / "images"), f"mutant-{i}")
        assert is_good == (images is not None), (i, open(path).read())
        if images is not None:
            accepted += 1
            columns = images.columns
            metrics = coco_metrics(columns, perfect(columns), columns.class_names)
            assert metrics["AP"] == pytest.approx(100), (i, open(path).read())
    assert 60 < accepted < 350


def test_the_fast_parser_agrees_with_the_rules(good):
    """What it accepts is what the rules make of it."""
    folder, content = good
    rng = np.random.default_rng(1)
    accepted = 0
    for i in range(300):
        path = str(folder / f"fast-{i}.json")
        with open(path, "w") as file:
            json.dump(mutate(content, rng), file)
        table, _ = read_fast(path)
        if table is not None:
            accepted += 1
            slow, findings = read_table(read_json(path))
            assert not findings and table.columns == slow.columns
            for key, columns in table.columns.items():
                for name, values in columns.items():
                    assert [type(x) for x in slow.column(key, name)] == [
                        bool if name == "iscrowd" else type(x) for x in values
                    ]
    assert accepted > 50


@pytest.mark.parametrize("ids", ["zero", "large", "texts", "floats", "falling"])
def test_perfect_predictions_have_ap_100_whatever_the_ids(good, ids):
    """pycocotools takes an object with the id 0 for one that was not found."""
    folder, content = good
    content = copy.deepcopy(content)
    make = {
        "zero": lambda i: i,
        "large": lambda i: 2**62 + i,
        "texts": lambda i: f"id {i}",
        "floats": lambda i: float(i),
        "falling": lambda i: 100 - i,
    }[ids]
    for key, field in (("images", "image_id"), ("categories", "category_id"), ("annotations", "")):
        new = {record["id"]: make(i) for i, record in enumerate(content[key])}
        for record in content[key]:
            record["id"] = new[record["id"]]
        for a in content["annotations"] if field else ():
            a[field] = new[a[field]]
    path = folder / f"ids-{ids}.json"
    path.write_text(json.dumps(content))
    columns = read_columns(str(path))
    metrics = coco_metrics(columns, perfect(columns), columns.class_names)
    assert metrics["AP"] == metrics["AP-cat"] == metrics["AP-dog"] == pytest.approx(100)


def test_more_than_a_hundred_objects_of_a_class_can_be_found(good):
    folder, content = good
    content = copy.deepcopy(content)
    first = content["annotations"][0]
    boxes = [[x, y, 2, 2] for x in range(0, 39, 3) for y in range(0, 39, 3)]
    content["annotations"] = [{**first, "id": i, "bbox": box} for i, box in enumerate(boxes)]
    path = folder / "many.json"
    path.write_text(json.dumps(content))
    columns = read_columns(str(path))
    assert len(boxes) > 100
    assert coco_metrics(columns, perfect(columns), columns.class_names)["AP"] == pytest.approx(100)


ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-32": b"",
    "utf-16-be": b"",
    "cp1252": b"",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_and_byte_order_marks_are_read(good, encoding):
    folder, content = good
    content = copy.deepcopy(content)
    content["categories"][0]["name"] = "Köter"
    path = folder / f"{encoding}.json"
    text = json.dumps(content, ensure_ascii=False)
    path.write_bytes(ENCODINGS[encoding] + text.encode(encoding))
    assert read_columns(str(path)).class_names == ["Köter", "dog"]


def findings_of(good, change):
    folder, content = good
    content = copy.deepcopy(content)
    change(content)
    path = folder / f"{abs(hash(json.dumps(content)))}.json"
    path.write_text(json.dumps(content))
    columns, findings = examine(str(path))
    found = [*findings, *(find_in_columns(columns) if columns is not None else ())]
    return "\n".join(str(x) for x in found)


def corners(content):
    for a in content["annotations"]:
        a["bbox"] = [25, 20, 35, 30]


def every(**fields):
    def change(content):
        for a in content["annotations"]:
            a.update(fields)

    return change


def first(**fields):
    return lambda content: content["annotations"][0].update(fields)


FOUND = {
    "error: all boxes lie within one pixel and look relative": every(bbox=[0.1, 0.2, 0.3, 0.4]),
    "error: boxes reach over their images as x, y, w, h, and all fit as corners": corners,
    "annotation 1 has [1, 2, 3, 4, 30] (five numbers are a rotated box": first(
        bbox=[1, 2, 3, 4, 30]
    ),
    "warning: boxes have an angle, which nothing here reads: annotation 1": first(
        attributes={"rotation": 45.0}
    ),
    "warning: 'ignore' is not read": first(ignore=1),
    "every annotation has iscrowd 1": every(iscrowd=1),
    "no object is left: there are no annotations": lambda c: c.update(annotations=[]),
    'annotation 1 has "0"': first(iscrowd="0"),
    "annotation 1 has category_id 99. The ids of the categories are 7, 30": first(category_id=99),
}


@pytest.mark.parametrize("message", FOUND)
def test_mistakes_are_called_by_their_names(good, message):
    assert message in findings_of(good, FOUND[message])


def test_a_bad_polygon_never_costs_a_box(good):
    for polygon in (None, 5, [], [[]], [[1, 2]], {"counts": "?"}, "a", [[1, None]]):
        assert "error" not in findings_of(good, every(segmentation=polygon))


@pytest.mark.parametrize("depth", [5000, 200_000])
def test_nesting_without_end_is_refused(tmp_path, depth):
    path = tmp_path / "deep.json"
    path.write_text('{"info": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError, match="deep.json"):
        read_columns(str(path))
