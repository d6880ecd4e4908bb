"""What is installed: configurations, the marker of type hints, commands that find both."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from groupdetr_d2.config.files import find_config
from tests.conftest import ROOT


def copy_source(folder):
    """The files that an installation reads, in a folder that is called like the package."""
    source = folder / "groupdetr_d2"
    for name in ("groupdetr_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    return source


def pip(command, source, *arguments):
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=source.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_source(tmp_path_factory.mktemp("source"))
    pip("wheel", source, source, "-w", folder)
    return next(folder.glob("*.whl"))


def test_an_editable_installation_is_found_beside_its_clone(tmp_path):
    """A folder without an __init__.py hides packages that an import hook would find later."""
    source = copy_source(tmp_path)
    pip("install", source, "--target", tmp_path / "site", "--editable", source)
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import groupdetr_d2;"
        "print(groupdetr_d2.__file__, groupdetr_d2.__all__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert str(source / "groupdetr_d2/__init__.py") in done.stdout and "'Predictor'" in done.stdout


def test_a_wheel_has_every_configuration_and_the_marker_of_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs and {f"groupdetr_d2/{name}" for name in configs} <= names
    assert "groupdetr_d2/py.typed" in names
    assert not any(name.startswith(("tests", "configs")) for name in names)


def test_the_installed_package_finds_its_configurations_anywhere(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import groupdetr_d2; from groupdetr_d2.engine.setup import build_config;"
        "cfg = build_config('configs/DINO/group_dino_4scale_R_50_12ep.yaml');"
        "print(groupdetr_d2.__file__, cfg.MODEL.DETR.NUM_GROUPS)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    place, num_groups = done.stdout.split()[-2:]
    assert Path(place).is_relative_to(site) and num_groups == "11"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/DINO/dino_4scale_R_50_12ep.yaml"
    assert find_config(name) == str(ROOT / name)
    (tmp_path / "configs/DINO").mkdir(parents=True)
    (tmp_path / name).touch()
    assert find_config(name) == name and find_config("gone.yaml") == "gone.yaml"
    assert find_config("") == ""


def test_the_page_of_keys_is_that_of_the_code():
    """`python tools/write_config_page.py` writes it anew."""
    path = ROOT / "tools/write_config_page.py"
    spec = importlib.util.spec_from_file_location("write_config_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = module.page(module.source_of_keys())
    assert (ROOT / "docs/config.md").read_text() == expected
    for key in ("MODEL.DETR.NUM_GROUPS", "SOLVER.ON_NONFINITE", "DATASETS.CUSTOM.TRAIN_JSON"):
        assert f"| `{key}` |" in expected
