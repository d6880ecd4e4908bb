"""The campaign for GPU machines, on the CPU and with small models."""

import argparse
import json
import math
import sys

import pytest
import torch

from groupdetr_d2.analysis import sweep
from tests.conftest import ROOT, SHRINK, SMALL_BACKBONE

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_campaign  # noqa: E402  a script beside its neighbours

SMALL = [str(x) for x in (*SHRINK, *SMALL_BACKBONE)]
CAMPAIGN = ["--device", "cpu", "--image-size", "64", "96", "--steps", "1"]


def campaign(results, *arguments):
    gpu_campaign.main([*arguments, "--results", str(results), *CAMPAIGN, *SMALL])
    return json.loads(results.read_text())


@pytest.mark.parametrize("name", ["Conditional DETR", "DINO"])
def test_a_device_that_agrees_with_itself(name):
    args = argparse.Namespace(device="cpu", opts=SMALL)
    found = gpu_campaign._compare(name, args)
    assert found["float32: equal outputs"] == 1
    assert found["float32: error of gradients"] < 1e-6
    assert found["bfloat16: error of gradients"] > 1e-4
    for what in ("equal outputs", "error of gradients"):
        assert found[f"bfloat16: {what}"] == found[f"{gpu_campaign.ROUNDED}: {what}"]
    assert found["float32: finite step"] and found["bfloat16: finite step"]


def test_a_gradient_that_is_no_number_or_twice_as_large_is_an_error():
    expected = {"a": torch.ones(3), "b": torch.ones(2)}
    assert gpu_campaign.error_of(expected, expected) == 0
    assert gpu_campaign.error_of(expected, {"a": torch.ones(3) * 2, "b": torch.ones(2)}) > 0.7
    spoilt = {"a": torch.tensor([1, math.nan, 1]), "b": torch.ones(2)}
    assert math.isnan(gpu_campaign.error_of(expected, spoilt))


def test_an_image_whose_queries_are_in_another_order_is_equal():
    outputs = torch.rand(2, 7, 5)
    assert gpu_campaign.share_of_equals(outputs, outputs.flip(1), "float32") == 1
    other = outputs.clone()
    other[0, 0] += 1
    assert gpu_campaign.share_of_equals(outputs, other, "float32") == pytest.approx(13 / 14)


def test_sampling_of_this_device_agrees_with_the_reference():
    found = gpu_campaign.check_sampling(argparse.Namespace(device="cpu"))
    assert found.pop("implementation") in ("sparse", "reference")
    assert len(found) == 8 and max(found.values()) < 1e-2


def test_the_campaign_continues_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_campaign, "MODELS", {"a": ["a.yaml"], "b": ["b.yaml"]})
    started, broken = [], {("a", 11), ("b", 1)}

    def cost(function, name, args, num_groups, how, limit):
        started.append((name, num_groups))
        if (name, num_groups) in broken:
            raise ValueError("out of memory")
        return {"seconds": 2.0 if num_groups == 1 else 3.0, "peak_mib": 100.0, "shares": {}}

    monkeypatch.setattr(gpu_campaign, "run_apart", cost)
    results = tmp_path / "gpu.json"
    found = campaign(results, "--only", "cost")["cost"]
    assert found["a"]["error"] == found["b"]["error"] == "ValueError: out of memory"
    assert "K = 1" in found["a"] and "K = 11" in found["b"]
    broken.clear()
    started.clear()
    monkeypatch.setitem(gpu_campaign.MODELS, "c", ["c.yaml"])
    campaign(results, "--only", "cost")
    assert started == [("c", 1), ("c", 11), ("a", 11), ("b", 1)]
    page = tmp_path / "results.md"
    page.write_text(f"before\n{gpu_campaign.MARKS[0]}\nold\n{gpu_campaign.MARKS[1]}\nafter\n")
    gpu_campaign.main(["--results", str(results), "--report", str(page)])
    text = page.read_text()
    assert "| a | 2.000 | 3.000 | 1.50 | 100 | 100 |" in text and "old" not in text
    assert "not yet measured" in text and text.startswith("before") and text.endswith("after\n")


def test_the_page_of_results_has_room_for_the_report():
    content = (ROOT / "docs/results.md").read_text()
    assert all(content.count(mark) == 1 for mark in gpu_campaign.MARKS)


def test_the_trainings_of_the_campaign_are_a_valid_sweep(tmp_path, monkeypatch):
    """Every configuration exists and every override is a known key; nothing is trained."""
    seen = []
    monkeypatch.setattr(gpu_campaign.commands, "run", lambda argv: seen.extend(argv))
    results, out = tmp_path / "gpu.json", tmp_path / "out"
    args = argparse.Namespace(device="cpu", data=tmp_path, results=results, out=out, opts=[])
    gpu_campaign.compare_trainings(args, 5.0)
    runs = [seen[i + 1] for i, word in enumerate(seen) if word == "--run"]
    assert len(runs) == 12 and "gpu_training.json" in " ".join(seen)
    jobs = sweep.list_jobs(argparse.Namespace(key=None, run=runs, opts=[], seeds=[0, 1, 2]))
    assert len({(job.label, job.seed) for job in jobs}) == 36
