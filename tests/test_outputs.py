"""What the commands of README and docs write does not show up in `git status`."""

import re
import shutil
import subprocess

import pytest

from groupdetr_d2.commands import build_parser
from groupdetr_d2.config.listing import list_configs, read_yaml
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = re.compile(
    r"(?:--out|OUTPUT_DIR|--results)[ =]([^\s`)|\"']+)"  # what an option names
    r"|\b(?:strip|convert(?: --source [\w-]+)?) \S+ ([\w.-]+\.pth)"  # what comes after an input
)
# committed on purpose, places outside of the checkout, and words that stand for any name
KEPT = re.compile(r"docs/results/|/|IN$|OUT$|FILE$|<|\$")


def outputs_of_docs():
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for found in WRITTEN.findall(text):
            name = next(filter(None, found)).rstrip(".,;:")
            if not KEPT.match(name):
                yield name


def default_outputs():
    commands = next(a for a in build_parser()._actions if a.dest == "command").choices
    for parser in commands.values():
        for action in parser._actions:
            if action.dest == "out" and action.default:
                yield action.default
    for config in list_configs(["quick_start"]):
        yield read_yaml(str(ROOT / config.name))["OUTPUT_DIR"]
    yield "datasets/shapes/x"


def test_outputs_of_the_docs_are_ignored_by_git():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    names = {*outputs_of_docs(), *default_outputs()}
    assert {"seen", "cells.pth", "model.onnx", "sweep.json", "predictions", "comparison"} <= names
    files = [name if re.search(r"\.\w+$", name) else f"{name.rstrip('/')}/x" for name in names]
    command = ["git", "check-ignore", "--no-index", *files]
    ignored = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert sorted(ignored) == sorted(files)
