"""Yaml files that loop, grow, or are something else: one message with the file's name."""

import time

import pytest

from groupdetr_d2.analysis.runs import RunsError, config_of_run
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import ConfigError, build_config
from groupdetr_d2.evaluation.metrics_file import read_metrics

GROWING = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
FILES = {
    "": "is empty, not a mapping",
    "[1]": "is a list, not a mapping",
    "hello": "is a str, not a mapping",
    "1: 2": "has the key 1: keys are texts",
    "MODEL:": "MODEL is None; it is a section",
    "MODEL: 5": "MODEL is 5; it is a section",
    "MODEL: {DETR: [1]}": r"MODEL.DETR is \[1\]; it is a section",
    "VERSION: x": "VERSION is 'x'; it is 2",
    "MODEL: {DETR: {NHEADS: many}}": "Type mismatch",
    "MODEL: {DETR: {NUM_GROUP: 3}}": "the nearest is MODEL.DETR.NUM_GROUPS",
    "_BASE_: file.yaml": "is based on itself",
    "_BASE_: other.yaml": "is based on itself",
    "_BASE_: gone.yaml": "gone.yaml does not exist",
    "_BASE_: .": "is a folder",
    "_BASE_: 5": "_BASE_ is 5; it has to be the path of a yaml",
    "_BASE_: http://127.0.0.1:9/a.yaml": "it has to be the path of a yaml",
    "_BASE_: /etc/passwd": "passwd is",
    "a: !!python/object/apply:os.getcwd []": "is not plain yaml",
    "[" * 3000: "nested too deeply|is not plain yaml",
    "a: {b: [}": "is not plain yaml",
    "a: [x": "is not plain yaml",
    GROWING: "stands for more than 10000 values",
    "x" * 2_000_000: "more than a megabyte",
}


@pytest.mark.parametrize("content", FILES, ids=lambda text: text[:30] or "empty")
def test_a_yaml_that_is_none_is_named_at_once(tmp_path, content):
    (tmp_path / "file.yaml").write_text(content)
    (tmp_path / "other.yaml").write_text("_BASE_: file.yaml")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=FILES[content]) as error:
        build_config(str(tmp_path / "file.yaml"))
    assert ".yaml" in str(error.value) or "passwd" in str(error.value)
    assert time.monotonic() - start < 2


def test_bytes_and_a_byte_order_mark(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="bytes.yaml"):
        build_config(str(tmp_path / "bytes.yaml"))
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfSEED: 5\nVERSION: 2\n")
    assert build_config(str(tmp_path / "mark.yaml")).SEED == 5


OVERRIDES = {
    "SOLVER.MAX_ITER=2": "SOLVER.MAX_ITER=2 has to be two words, KEY VALUE: SOLVER.MAX_ITER 2",
    "SOLVER.MAX_ITER two": r"the command line, SOLVER.MAX_ITER two: .*A right one is: SOLVER.MAX_",
    "SOLVER.STEPS (1,": r'A right one is: SOLVER.STEPS "\[30000\]"',
    "SOLVER.STEPS 5": r'A right one is: SOLVER.STEPS "\[30000\]"',
    "SOLVER.MAX_ITER": "SOLVER.MAX_ITER stands alone",
    "MODEL.DETR.NUM_GROUPS 0": "MODEL.DETR.NUM_GROUPS is 0; it can be 1 to 1000",
    "MODEL.DETR.HIDDEN_DIM 130": "HIDDEN_DIM is 130; it has to be a multiple of 4 and of",
    "MODEL.PIXEL_STD [1.0]": r"MODEL.PIXEL_STD is \[1.0\]; it has to be three numbers",
    "MODEL.DETR.SPACE.BOX_RANGE [1.0,2.0]": r"BOX_RANGE is \[1.0, 2.0\]; it has to be x, y, z",
    "DATASETS.CUBES.KEYFRAMES 0": "DATASETS.CUBES.KEYFRAMES is 0; it can be 1 to 1000",
    "INPUT.MIN_SIZE_TRAIN (0,)": "INPUT.MIN_SIZE_TRAIN is",
}


@pytest.mark.parametrize("words", OVERRIDES)
def test_overrides_are_explained(words):
    with pytest.raises(ValueError, match=OVERRIDES[words]):
        build_config(opts=words.split(" ", 1))


METRICS = [
    *("5", "null", "[1]", '"a"', "{}", '{"iteration": null}', '{"iteration": "1"}', "{"),
    *('{"iteration": [1]}', "[" * 5000, '{"iteration": true}', '{"iteration": 9, "time": "x"}'),
]


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    good = '{"iteration": 1, "total_loss": 2.0, "bbox/AP": 3.0}'
    (tmp_path / "metrics.json").write_text("\n".join([*METRICS, good, *METRICS]))
    assert read_metrics(tmp_path) == [
        {"iteration": 1, "total_loss": 2.0, "bbox/AP": 3.0},
        {"iteration": 9},
    ]
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe" + good.encode())
    assert read_metrics(tmp_path) == []


CONFIGS = ["", "[1]", "5", "1: 2", "a: !!python/object/apply:os.getcwd []", "MODEL: 5", "{["]


@pytest.mark.parametrize("content", CONFIGS)
def test_the_configuration_of_a_run_that_is_none_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.0, "bbox/AP": 3.0}')
    with pytest.raises(RunsError, match="config.yaml"):
        config_of_run(tmp_path)
    with pytest.raises(SystemExit, match="config.yaml"):
        main(["compare", str(tmp_path), "--out", str(tmp_path / "compared")])
