"""check-data finds what is planted, and nothing where nothing is wrong."""

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from groupdetr_d2.commands import run as main
from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.inspection import inspect_coco, read_image
from groupdetr_d2.data.near_duplicates import Thumbnails, near_duplicates, thumbnail_of
from groupdetr_d2.data.variety import Objects, others, varied_images
from groupdetr_d2.data.yolo import Labels, convert_yolo, read_labels
from groupdetr_d2.evaluation.data_report import format_labels
from tests.data.test_data import write_set


@pytest.fixture
def coco(tmp_path):
    """A function that changes a good set, writes it and returns what inspection finds."""
    path = write_set(tmp_path, "train", num_images=4)

    def change_and_inspect(change, **options):
        content = json.loads(open(path).read())
        change(content)
        (tmp_path / "train.json").write_text(json.dumps(content))
        return inspect_coco(path, str(tmp_path / "images"), **options)

    return change_and_inspect


def texts(inspection, is_error):
    return "\n".join(str(f) for f in inspection.findings if f.is_error == is_error)


def test_a_good_set_has_no_errors_and_is_counted(coco):
    found = coco(lambda content: None)
    assert not found.has_errors
    assert texts(found, False) == (
        "warning: images without objects, which train as background: train_0.png"
    )
    numbers = found.numbers
    assert (numbers["images"], numbers["objects"]) == (4, 3)
    assert numbers["classes"] == {"cat": 1, "dog": 2}
    assert numbers["objects per image"] == {"mean": 0.75, "median": 1.0, "most": 1}
    assert numbers["box sizes"]["small (< 32 x 32 pixels)"] == 3


def first(content):
    return content["annotations"][0]


ERRORS = {
    "boxes .* not finite": lambda c: first(c).update(bbox=[1, 1, float("nan"), 3]),
    "boxes .* have no area": lambda c: first(c).update(bbox=[1, 1, 0, 3]),
    "lie outside their image: train_1.png": lambda c: first(c).update(bbox=[900, 1, 5, 5]),
    "annotations of an unknown category: annotation 1 has category_id 99": lambda c: first(
        c
    ).update(category_id=99),
    "annotations of an unknown image": lambda c: first(c).update(image_id=77),
    "annotations share an id: id 2": lambda c: first(c).update(id=2),
    "annotations without 'iscrowd'": lambda c: first(c).pop("iscrowd"),
    "no list: 'categories'": lambda c: c.pop("categories"),
    "images missing in .*: gone.png": lambda c: c["images"][1].update(file_name="gone.png"),
    "another size .*train_1.png is 60 x 40, not 61 x 40": lambda c: c["images"][1].update(width=61),
    "listed more than once: train_0.png": lambda c: c["images"][1].update(file_name="train_0.png"),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_found(coco, message):
    found = coco(ERRORS[message])
    assert found.has_errors
    assert re.search(message, texts(found, True)), texts(found, True)


WARNINGS = {
    "partly outside": lambda c: first(c).update(bbox=[-5, -5, 20, 20]),
    "boxes given twice": lambda c: c["annotations"].append({**first(c), "id": 9}),
    "crowds alone, which count as empty: train_1.png": lambda c: first(c).update(iscrowd=1),
    "classes without any object: bird": lambda c: c["categories"].append(
        {"id": 50, "name": "bird"}
    ),
    "classes with the same name: cat": lambda c: c["categories"][1].update(name="cat"),
}


@pytest.mark.parametrize("message", WARNINGS)
def test_warnings_are_found(coco, message):
    found = coco(WARNINGS[message])
    assert not found.has_errors and message in texts(found, False)


def test_more_objects_than_queries(coco):
    def crowd(content):
        content["annotations"] += [{**first(content), "id": 10 + i} for i in range(3)]

    assert "NUM_OBJECT_QUERIES (3): train_1.png (4)" in texts(coco(crowd, num_queries=3), False)


def test_images_that_cannot_be_read_and_headers_alone(coco, tmp_path):
    path = tmp_path / "images" / "train_2.png"
    path.write_bytes(path.read_bytes()[:-200])  # the header stays
    assert "cannot be read: train_2.png" in texts(coco(lambda c: None), True)
    assert not coco(lambda c: None, decode=False).has_errors


def test_a_picture_on_its_side_has_the_size_that_the_reader_gives(coco, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "train_1.jpg", exif=exif)
    found = coco(lambda c: c["images"][1].update(file_name="train_1.jpg", width=60, height=40))
    assert not found.has_errors


def test_the_command_reports_and_returns_1_on_errors(tmp_path, capsys):
    path = write_set(tmp_path, "train")
    arguments = ["check-data", "--json", path, "--images", str(tmp_path / "images")]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "objects: 2" in printed and "no errors" in printed
    assert cv2.imread(str(out / "data_sheet.jpg")) is not None
    (tmp_path / "images" / "train_0.png").unlink()
    assert main([*arguments, "--out", str(out)]) == 1
    assert "images missing in" in capsys.readouterr().out
    report = json.loads((out / "data_report.json").read_text())
    assert [f["is_error"] for f in report["findings"]] == [True, False]
    with pytest.raises(SystemExit, match="gone.json does not exist"):
        main(["check-data", "--json", "gone.json", "--images", str(tmp_path)])


def noise(seed, size=(80, 120)):
    """A photograph of coarse noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def put_noise(path, seed):
    """Puts noise in the place of an image of the same size."""
    cv2.imwrite(str(path), noise(seed, cv2.imread(str(path)).shape[:2]))


def thumbnails_of(pictures):
    thumbnails = [thumbnail_of(Image.fromarray(picture)) for picture in pictures]
    return Thumbnails.of([str(i) for i in range(len(pictures))], thumbnails)


def test_images_that_were_resized_or_compressed_anew_are_found_again():
    first = [noise(i) for i in range(40)]
    second = [noise(i + 100) for i in range(10)]
    second[3] = cv2.resize(first[7], (90, 60), interpolation=cv2.INTER_AREA)
    coded = cv2.imencode(".jpg", first[11], [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    second[5] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    second[8] = np.clip(first[20].astype(int) + 2, 0, 255).astype(np.uint8)
    assert near_duplicates(thumbnails_of(first), thumbnails_of(second)) == [
        (7, 3),
        (11, 5),
        (20, 8),
    ]
    nothing = thumbnails_of([])
    assert near_duplicates(nothing, thumbnails_of(second)) == near_duplicates(
        thumbnails_of(first), nothing
    )


def test_blank_images_differ_by_their_grey_and_cost_little(monkeypatch):
    monkeypatch.setattr("groupdetr_d2.data.near_duplicates.TOGETHER", 3)
    first = thumbnails_of([np.full((20, 20, 3), 10 * i, np.uint8) for i in range(20)])
    second = thumbnails_of([np.full((30, 20, 3), x, np.uint8) for x in (71, 246, 30)])
    assert near_duplicates(first, second) == [(7, 0), (3, 2)]


def test_a_turned_photograph_looks_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, upright = tmp_path / "a.png", tmp_path / "b.png"
    picture = noise(0)
    Image.fromarray(np.rot90(picture)).save(turned, exif=exif)
    Image.fromarray(picture).save(upright)
    a, b = (read_image(path, decode=True).thumbnail for path in (turned, upright))
    assert a.bits == b.bits and np.array_equal(a.grey, b.grey)
    assert read_image(upright, decode=False).thumbnail is None


def test_validation_images_that_are_training_images_are_named(tmp_path, capsys):
    train, val = (write_set(tmp_path, name, num_images=4) for name in ("train", "val"))
    images = tmp_path / "images"
    for i in range(4):
        for name in ("train", "val"):
            put_noise(images / f"{name}_{i}.png", 10 * i + (name == "val"))
    put_noise(images / "val_2.png", 30)  # train_3
    out = tmp_path / "out"
    arguments = ["check-data", "--json", train, "--images", str(images), "--val-json", val]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "val_2.png is like train_3.png" in capsys.readouterr().out
    report = json.loads((out / "val_report.json").read_text())
    (finding,) = [f for f in report["findings"] if "nearly the same" in f["text"]]
    assert finding["examples"] == ["val_2.png is like train_3.png"] and not finding["is_error"]
    assert main([*arguments, "--out", str(out), "--fast"]) == 0
    assert "no images of two sets were compared" in capsys.readouterr().out


def test_label_statistics_by_hand(coco, capsys):
    def change(content):
        one = first(content)
        content["annotations"] += [
            {**one, "id": 20, "bbox": [0, 0, 40, 40], "area": 1600},
            {**one, "id": 21, "bbox": [0, 0, 9, 4], "area": 36},
            {**one, "id": 22, "iscrowd": 1},
        ]
        content["categories"].append({"id": 50, "name": "bird"})

    found = coco(change)
    rows = {row["class"]: row for row in found.labels}
    assert list(rows) == ["cat", "dog", "bird", "all"]
    assert rows["bird"]["objects"] == 0 and np.isnan(rows["bird"]["median side"])
    assert rows["all"]["objects"] == 5 and rows["all"]["images"] == 3
    assert sum(row["objects"] for row in found.labels) == 10
    own = rows[max(("cat", "dog"), key=lambda name: rows[name]["medium"])]
    assert own["medium"] == 1 and own["small"] == own["objects"] - 1
    text = format_labels(found)
    assert "1 regions of crowds" in text and re.search(r"bird +0 +0 .* -", text)


def test_a_sheet_shows_all_classes_and_unusual_images():
    """Of 60 images 50 have a cat alone; 20 classes are on one image each, two of them together."""
    image_of, class_of = [*range(50), *[50] * 6], [0] * 56
    for i in range(1, 21):
        image_of.append(30 + (i if i < 20 else 19))
        class_of.append(i)
    sides = np.full(len(image_of), 0.3)
    sides[4], sides[9] = 0.01, 0.9
    names = [f"class {i}" for i in range(21)]
    objects = Objects(np.array(image_of), np.array(class_of), sides, 60, names)
    chosen = varied_images(objects, 24)
    reasons = dict(chosen)
    assert reasons[50] == "most objects, 6" and reasons[4] == "smallest object"
    assert reasons[9] == "largest object" and reasons[51] == "no objects"
    assert objects.classes_on([image for image, _ in chosen]) == 21
    assert reasons[49] == "class 19, class 20"
    assert len(varied_images(objects, 6)) == 6
    rest = [image for image, _ in others(objects, list(reasons))]
    assert sorted([*rest, *reasons]) == list(range(60))
    empty = Objects(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 2, ["cat"])
    assert varied_images(empty, 5) == [(0, "no objects")]
    assert varied_images(Objects(*[np.zeros(0, int)] * 3, 0, []), 5) == []


def write_yolo(folder, layout):
    for split in ("train", "val"):
        images = folder / (f"images/{split}" if layout == "images first" else f"{split}/images")
        labels = folder / str(images.relative_to(folder)).replace("images", "labels")
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        cv2.imwrite(str(images / "a.png"), np.zeros((50, 100, 3), np.uint8))
        cv2.imwrite(str(images / "b.png"), np.zeros((50, 100, 3), np.uint8))
        (labels / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n")
    (folder / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    return folder


@pytest.mark.parametrize("layout", ["images first", "split first"])
def test_yolo_folders_are_converted(tmp_path, layout, capsys):
    folder = write_yolo(tmp_path / "yolo", layout)
    written = convert_yolo(folder, tmp_path / "out")
    assert set(written) == {"train", "val"}
    content = json.loads(written["train"].read_text())
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert len(content["images"]) == 2 and content["images"][0]["width"] == 100
    box, polygon = content["annotations"]
    assert box["category_id"] == 2 and box["bbox"] == [40, 15, 20, 20] and box["area"] == 400
    assert polygon["category_id"] == 1 and polygon["bbox"] == [10, 10, 20, 20]
    assert main(["check-data", "--yolo", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "--train-json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", "class 7, but there are 2"),
        ("0 0.5", "neither a box"),
        ("a b", "line 1"),
    ],
)
def test_bad_yolo_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.txt"
    path.write_text(line)
    with pytest.raises(DatasetError, match=f"a.txt, line 1.*|{message}") as error:
        read_labels(path, Labels(["cat", "dog"]))
    assert message in str(error.value)


def test_yolo_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        convert_yolo(tmp_path / "gone", tmp_path)
    with pytest.raises(DatasetError, match="no class names"):
        convert_yolo(tmp_path, tmp_path / "out")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DatasetError, match="has no images"):
        convert_yolo(tmp_path, tmp_path / "out")


def test_a_split_test_without_labels_is_left_out(tmp_path, package_log):
    folder = write_yolo(tmp_path / "yolo", "images first")
    (folder / "images/test").mkdir()
    cv2.imwrite(str(folder / "images/test/c.png"), np.zeros((50, 100, 3), np.uint8))
    assert set(convert_yolo(folder, tmp_path / "out")) == {"train", "val"}
    assert "the images of the split test have no labels" in package_log.text
    for path in (folder / "labels/val").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="none of 2 images has a label file"):
        convert_yolo(folder, tmp_path / "out")


YOLO_LINES = {
    "0 0.5 0.5 0.2 0.4 " + "0.1 0.1 2 " * 3: ((0.5, 0.5, 0.2, 0.4), 9),  # a pose of three points
    "0 0.5 0.5 0.2 0.4": ((0.5, 0.5, 0.2, 0.4), 9),
    "1 0.4 0.2 0.6 0.2 0.6 0.6 0.4 0.6": ((0.4, 0.2, 0.6, 0.2, 0.6, 0.6, 0.4, 0.6), 0),  # rotated
}


@pytest.mark.parametrize("line", YOLO_LINES)
def test_lines_of_poses_and_rotated_boxes(tmp_path, line):
    (tmp_path / "a.txt").write_text(line)
    numbers, keypoints = YOLO_LINES[line]
    ((_, found),) = read_labels(tmp_path / "a.txt", Labels(["cat", "dog"], keypoints))
    assert found == numbers


def test_lists_paths_elsewhere_and_links(tmp_path):
    """Images that a text file lists, in a folder that `path` names, one of them a link."""
    data = write_yolo(tmp_path / "data", "images first")
    settings = tmp_path / "settings"
    settings.mkdir()
    (tmp_path / "store.png").write_bytes((data / "images/train/a.png").read_bytes())
    (data / "images/train/a.png").unlink()
    (data / "images/train/a.png").symlink_to(tmp_path / "store.png")
    (data / "list.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    (settings / "data.yaml").write_text("path: ../data\ntrain: list.txt\nnames: [cat, dog]\n")
    content = json.loads(convert_yolo(settings, tmp_path / "out")["train"].read_text())
    assert [len(content[key]) for key in ("images", "annotations")] == [2, 2]
    found = inspect_coco(str(tmp_path / "out/train.json"), str(settings))
    assert not found.has_errors


@pytest.mark.parametrize("content", ["- 1", "hello", "names: 5", "kpt_shape: x\nnames: [a]"])
def test_a_description_that_is_none_is_named(tmp_path, content):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DatasetError, match=str(tmp_path)):
        convert_yolo(tmp_path, tmp_path / "out")
