"""The progress lines that a training prints."""

import datetime
import logging
import time
from collections.abc import Sequence

import torch
from detectron2.utils.events import EventWriter, get_event_storage

from .memory import peak_memory_mib

logger = logging.getLogger(__name__)


class ProgressPrinter(EventWriter):
    """Prints epoch, ETA, the last decoder layer's losses, rates, times and memory.

    Args:
        epoch_iters: iterations of one epoch; None if that is not known.
        shown_losses: names of the losses to print beside their sum.
    """

    def __init__(
        self,
        max_iter: int,
        epoch_iters: float | None,
        device: torch.device,
        shown_losses: Sequence[str],
    ):
        self.max_iter, self.epoch_iters, self.device = max_iter, epoch_iters, device
        self.shown = ("total_loss", *shown_losses)
        self.last: tuple[int, float] | None = None

    def write(self) -> None:
        """Prints one line."""
        storage = get_event_storage()
        iteration = storage.iter + 1
        if storage.iter == self.max_iter:
            return
        latest = storage.latest_with_smoothing_hint(20)
        parts = [f"iter {iteration}/{self.max_iter}", f"eta {self._eta(iteration)}"]
        if self.epoch_iters:
            epoch, last = iteration / self.epoch_iters, self.max_iter / self.epoch_iters
            parts.insert(0, f"epoch {epoch:.2f}/{last:.4g}")
        parts += [f"{name} {latest[name][0]:.4g}" for name in self.shown if name in latest]
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.3g}")
        for name in ("time", "data_time", "match_time"):
            if name in latest:
                parts.append(f"{name} {latest[name][0]:.4f}")
        parts.append(f"memory {peak_memory_mib(self.device):.0f}M")
        logger.info("  ".join(parts))

    def _eta(self, iteration: int) -> str:
        now = time.perf_counter()
        if self.last is None or self.last[0] == iteration:
            self.last = self.last or (iteration, now)
            return "?"
        seconds = (now - self.last[1]) / (iteration - self.last[0])
        return str(datetime.timedelta(seconds=int(seconds * (self.max_iter - iteration))))
