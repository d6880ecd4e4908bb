"""The cost of a training step: time and its shares, peak memory, FLOPs (the paper's Table 2)."""

import contextlib
import multiprocessing
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.memory import keep_freed_memory, peak_memory_mib
from ..engine.solver import amp_dtype_of, build_optimizer
from ..errors import UserError
from ..structures import PerImage, Predictions, map_tensors
from .random_batch import random_inputs

WARM_UP_STEPS = 2
START_METHOD = "spawn"  # a fresh interpreter, whose memory is its own


def run_apart(function: Callable, *args, limit: float | None = None):
    """Calls `function` in a process of its own, so that peaks of memory do not mix.

    Args:
        limit: seconds after which it is killed.

    Raises:
        UserError: the process was killed.
    """
    context = multiprocessing.get_context(START_METHOD)
    with ProcessPoolExecutor(1, context, _leave_ctrl_c_to_parent) as pool:
        future = pool.submit(function, *args)
        try:
            if not wait([future], limit).done:
                _kill_children()
                raise UserError(f"took more than {limit:.0f} s, and was killed")
            return future.result()
        except KeyboardInterrupt:
            _kill_children()
            raise
        except BrokenProcessPool as error:
            raise UserError(
                "the measuring process was killed, probably for want of memory: take smaller "
                "images, a smaller batch or fewer groups"
            ) from error


def _leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def count_flops(
    cfg, size: tuple[int, int], batch_size: int, *, num_objects: int, backward: bool
) -> int:
    """Counts FLOPs (2 per multiply-add), forward and, in training, backward.

    The model itself is not run; matching and losses are, on numbers drawn at random.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.DETR.DROPOUT = 0.0
    model = build_model(cfg)
    groups = model.groups if backward else model.groups.primary()
    batch = random_inputs(cfg, size, batch_size, num_objects)
    images = [{**x, "image": x["image"].to("meta")} for x in batch]
    with FlopCounterMode(display=False) as counter:
        predictions = model.predict(images, groups)
        if backward:
            sum(x.sum() for x in tensors_of(predictions) if x.requires_grad).backward()
    flops = counter.get_total_flops()
    if not backward:
        return flops
    targets = model.to_empty(device="cpu").build_targets(batch)
    with FlopCounterMode(display=False) as counter:
        losses = model.criterion(drawn_like(predictions), targets, groups)
        sum(losses.values()).backward()
    return flops + counter.get_total_flops()


def tensors_of(predictions: Predictions) -> list[torch.Tensor]:
    """Lists the outputs of queries, and what the queries of an image share."""
    values = [getattr(x, "value", x) for x in vars(predictions).values()]
    return [x for x in values if isinstance(x, torch.Tensor)]


def drawn_like(predictions: Predictions) -> Predictions:
    """Draws outputs of the same shapes on the CPU, those of the object queries alone."""

    def draw(x: torch.Tensor) -> torch.Tensor:
        return torch.rand(x.shape, requires_grad=True)

    shared = {k: x for k, x in vars(predictions).items() if isinstance(x, PerImage)}
    own: dict[str, Any] = {k: PerImage(draw(x.value)) for k, x in shared.items()}
    return replace(map_tensors(predictions, draw), denoised=None, proposals=None, **own)


class PhaseTimer:
    """Adds up the seconds of a model's parts, from hooks around their forward."""

    def __init__(self, parts: dict[str, list[nn.Module]], synchronize):
        self.seconds: dict[str, float] = defaultdict(float)
        self.synchronize = synchronize
        for name, modules in parts.items():
            for module in modules:
                self._watch(name, module)

    def _watch(self, name: str, module: nn.Module):
        started = []

        def before(*_):
            self.synchronize()
            started.append(time.perf_counter())

        def after(*_):
            self.synchronize()
            self.seconds[name] += time.perf_counter() - started.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    @contextlib.contextmanager
    def phase(self, name: str):
        """Times a block."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] += time.perf_counter() - start


def measure_step(
    cfg,
    size: tuple[int, int],
    batch_size: int,
    *,
    num_objects: int,
    steps: int,
    training: bool,
    warm_up: int = WARM_UP_STEPS,
) -> dict:
    """Measures the seconds of a step, the shares of its parts, and peak memory.

    Args:
        warm_up: steps that run before the first one that counts.
    """
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if not cuda:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(cfg).train(training)
    optimizer = build_optimizer(cfg, model, clips=False)
    batch = random_inputs(cfg, size, batch_size, num_objects)
    head = model.head
    parts = {
        "backbone": [model.backbone],
        "encoder": [head.neck, head.encoder],
        "decoder": [head.decoder, head.predictor],
        "criterion": [model.criterion],
    }
    timer = PhaseTimer(parts, torch.cuda.synchronize if cuda else lambda: None)
    durations = []
    for i in range(warm_up + steps):
        if i == warm_up:
            timer.seconds.clear()
        start = time.perf_counter()
        run_step(model, optimizer, batch, timer, amp_dtype_of(cfg))
        durations.append(time.perf_counter() - start)
    durations = durations[warm_up:]
    total = sum(durations)
    shares = dict(timer.seconds)
    if training:
        shares["losses"] = shares.pop("criterion") - shares["matching"]
    return {
        **middle_and_ends(durations),
        "durations": durations,
        "shares": {name: seconds / total for name, seconds in shares.items()},
        "peak_mib": peak_memory_mib(torch.device(cfg.MODEL.DEVICE)),
    }


def middle_and_ends(durations: list[float]) -> dict[str, float]:
    """Returns the median, the shortest and the longest duration by name."""
    return {
        "seconds": statistics.median(durations),
        "fastest": min(durations),
        "slowest": max(durations),
    }


def run_step(
    model, optimizer, batch: list[dict], timer: PhaseTimer, amp_dtype: torch.dtype | None
) -> None:
    """Runs a training step, or of a model in evaluation an inference in float32."""
    if not model.training:
        with torch.no_grad(), timer.phase("all"):
            model(batch)
        return
    optimizer.zero_grad()
    with torch.autocast(model.device.type, amp_dtype, enabled=amp_dtype is not None):
        losses = model(batch)
    timer.seconds["matching"] += losses.match_seconds
    with timer.phase("backward"):
        sum(losses.values()).backward()
    with timer.phase("update"):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
