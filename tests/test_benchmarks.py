"""The campaign for GPU machines, on the CPU and with small models."""

import argparse
import json
import sys

import pytest
import torch

from groupdetr_d2.analysis import sweep

from .conftest import ROOT, SHRINK, SMALL_BACKBONE

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
    assert found["float32: lowest cosine of a gradient"] == pytest.approx(1, abs=1e-6)
    assert found["float32: finite step"] and found["bfloat16: finite step"]


def test_an_image_whose_queries_are_in_another_order_is_equal():
    outputs = torch.rand(2, 7, 5)
    assert gpu_campaign.share_of_equals(outputs, outputs.flip(1), "float32") == 1
    other = outputs.clone()
    other[0, 0] += 1
    assert gpu_campaign.share_of_equals(outputs, other, "float32") == pytest.approx(13 / 14)


def test_sampling_of_this_device_agrees_with_the_reference():
    found = gpu_campaign.check_sampling(argparse.Namespace(device="cpu"))
    assert len(found) == 8 and min(found.values()) > 0.999


def test_the_campaign_continues_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_campaign, "MODELS", {"a": ["a.yaml"], "b": ["b.yaml"]})
    started, broken = [], {"b"}

    def cost(name, args):
        started.append(name)
        if name in broken:
            raise ValueError("out of memory")
        part = {"seconds": 2.0, "peak MiB": 100.0, "shares": {}}
        return {"K = 1": part, "K = 11": {**part, "seconds": 3.0}}

    monkeypatch.setitem(gpu_campaign.TASKS, "cost", cost)
    results = tmp_path / "gpu.json"
    found = campaign(results, "--only", "cost")
    assert found["cost"]["b"]["error"] == "ValueError: out of memory" and started == ["a", "b"]
    broken.clear()
    campaign(results, "--only", "cost")
    assert started == ["a", "b", "b"]
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
    monkeypatch.setattr(gpu_campaign.analyze, "main", lambda argv: seen.extend(argv))
    results, out = tmp_path / "gpu.json", tmp_path / "out"
    args = argparse.Namespace(device="cpu", data=tmp_path, results=results, out=out, opts=[])
    gpu_campaign.compare_trainings(args, 5.0)
    runs = [seen[i + 1] for i, word in enumerate(seen) if word == "--run"]
    assert len(runs) == 12 and "gpu_training.json" in " ".join(seen)
    jobs = sweep.list_jobs(argparse.Namespace(key=None, run=runs, opts=[], seeds=[0, 1, 2]))
    assert len({(job.label, job.seed) for job in jobs}) == 36
