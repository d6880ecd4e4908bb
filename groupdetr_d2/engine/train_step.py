"""One training iteration, and the error if its numbers are not finite."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..checkpoint import CheckpointError
from ..data.workers import SkippedImages
from ..distributed import average_over_processes, whole
from ..errors import UserError
from ..losses.criterion import Losses
from .interruption import StopSignals
from .sharding import WholeCopy, are_finite, spread_optimizer

logger = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """A loss is NaN or infinite; the message says where it began."""


class TrainStep(SimpleTrainer):
    """Detectron2's iteration with autocast on any device, clipping, and a check of its numbers.

    Random numbers of an iteration depend on the seed, the process and the iteration alone, so that
    a resumed run draws what the uninterrupted one would have drawn.

    Args:
        clip_norm: bound of the norm of all gradients together; 0 for none.
        amp_dtype: the type of autocast; None for full precision.
        accumulate_steps: parts of a batch that go through the model one after another, which takes
            less memory; the gradient is that of the whole batch.
        nonfinite_budget: iterations with numbers that are not finite that may be left out in all;
            the next one ends the run.
        max_skipped: different images that the loader may leave out because they cannot be used.
        signals: the signals that may ask the run to stop.
        whole_copy: of a sharded model, which is looked through if a number is not finite.

    Attributes:
        stop_signal: the signal that some process has got by the end of the last iteration, or 0.
        left_out: iterations left out so far.
        last_batch: what the loader gave last.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]] | None,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        amp_dtype: torch.dtype | None,
        seed: int,
        accumulate_steps: int = 1,
        nonfinite_budget: int = 0,
        max_skipped: int = 0,
        signals: StopSignals | None = None,
        whole_copy: WholeCopy | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate_steps = accumulate_steps
        self.clip_norm, self.amp_dtype, self.seed = clip_norm, amp_dtype, seed
        self.device = next(model.parameters()).device
        scaled = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.nonfinite_budget, self.left_out = nonfinite_budget, 0
        self.skipped = SkippedImages(max_skipped)
        self.signals, self.stop_signal = signals or StopSignals(), 0
        self.whole_copy = whole_copy
        self.last_batch: list[dict] = []
        self.has_checked_gradients = False

    @property
    def plain_model(self) -> nn.Module:
        """The model without the wrapper for several processes; its parameters may be sharded."""
        is_wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        return self.model.module if is_wrapped else self.model

    def run_step(self) -> None:
        """Runs one iteration: data, losses, gradients, check, update.

        Raises:
            NonFiniteLossError: a number is not finite in some process, in all of them alike.
        """
        start = time.perf_counter()
        batch = self.last_batch = next(self._data_loader_iter)
        self.skipped.add(batch)
        data_time = time.perf_counter() - start
        torch.manual_seed(hash((self.seed, comm.get_rank(), self.iter)) % 2**63)
        self.optimizer.zero_grad()
        losses, suspects = self.compute_gradients(batch)
        self.after_backward()
        self._check_gradients()
        losses["gradient norm"] = self._clip()
        values, is_bad = self._check_together(torch.stack(list(losses.values())), suspects)
        losses = dict(zip(losses, values, strict=True))
        if is_bad:
            with self._searched_model() as model:
                what = self._describe(model, batch, losses, suspects)
            self._leave_out(what)
            return
        del losses["gradient norm"]
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _check_gradients(self) -> None:
        """Checks after the first backward that all that should be trained is."""
        if not self.has_checked_gradients:
            check_gradients(self.plain_model, is_alone=comm.get_world_size() == 1)
            self.has_checked_gradients = True

    def _clip(self) -> torch.Tensor:
        """Clips gradients; returns the norm of all together before that."""
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.clip_norm or math.inf))
        # a scaler tries scales that are too large, and leaves those iterations out by itself
        return norm.new_zeros(()) if self.grad_scaler.is_enabled() else norm

    def _check_together(
        self, values: torch.Tensor, suspects: list[int]
    ) -> tuple[list[torch.Tensor], bool]:
        """Moves values to the host, and finds whether those of any process are bad.

        It takes one transfer, in which processes also exchange signals to stop.
        """
        shared = values.new_tensor([bool(suspects), self.signals.received])
        shared[0] += ~values.isfinite().all()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        *on_host, is_bad, number = torch.cat([values, shared]).cpu().unbind()
        self.stop_signal = int(number)
        self.signals.received = self.signals.received or self.stop_signal
        return on_host, bool(is_bad)

    def _leave_out(self, what: str) -> None:
        """Leaves an iteration out, if the budget allows it and the weights are finite."""
        if not are_finite(self.model.parameters()) or self.left_out >= self.nonfinite_budget:
            raise NonFiniteLossError(
                f"{what} The last checkpoint is untouched: resume from it without AMP or with "
                "SOLVER.AMP.DTYPE bfloat16, with SOLVER.ON_NONFINITE skip if it is a rare batch, "
                "or start from it as MODEL.WEIGHTS with a lower SOLVER.BASE_LR"
            )
        self.left_out += 1
        self.grad_scaler.update()
        logger.warning(
            "%s The iteration is left out, %d of at most %d (SOLVER.ON_NONFINITE)",
            what,
            self.left_out,
            self.nonfinite_budget,
        )
        if has_event_storage():
            get_event_storage().put_scalar("left_out", self.left_out, smoothing_hint=False)

    def compute_gradients(self, batch: list[dict]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Runs forward and backward of all parts of the batch.

        Returns:
            the batch's losses, without gradients, and which of its images have matching costs that
            are not finite.
        """
        counts = [len(x["instances"]) for x in batch]
        num_targets = average_over_processes(sum(counts))
        size = -(-len(batch) // self.accumulate_steps)
        totals: dict[str, torch.Tensor] = {}
        suspects: list[int] = []
        for first in range(0, len(batch), size):
            part = batch[first : first + size]
            is_last = first + size >= len(batch)
            with contextlib.nullcontext() if is_last else self._no_communication():
                with self._autocast():
                    losses = self.model(part, num_targets, counts)
                self.grad_scaler.scale(sum(losses.values())).backward()
            if isinstance(losses, Losses):  # a model of another package has none
                suspects += [first + i for i in losses.non_finite_images]
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
        return totals, suspects

    def _no_communication(self) -> contextlib.AbstractContextManager:
        """Within, gradients are not exchanged: that is done once a batch, after its last part.

        Those of a sharded model are, as they would be whole in every process until then.
        """
        is_wrapped = self.plain_model is not self.model
        return self.model.no_sync() if is_wrapped else contextlib.nullcontext()

    def _autocast(self) -> torch.autocast:
        enabled = self.amp_dtype is not None
        # the cache would keep all of a sharded model in the lower precision, until forward ends
        cached = None if self.whole_copy is None else False
        return torch.autocast(
            self.device.type, dtype=self.amp_dtype, enabled=enabled, cache_enabled=cached
        )

    def _searched_model(self) -> contextlib.AbstractContextManager[nn.Module]:
        """Within, a model that this process can run alone; all processes have to enter together."""
        if self.whole_copy is None:
            return contextlib.nullcontext(self.plain_model)
        return self.whole_copy.filled(self.model)

    def _describe(
        self,
        model: nn.Module,
        batch: list[dict],
        losses: dict[str, torch.Tensor],
        suspects: list[int],
    ) -> str:
        bad = [name for name, value in losses.items() if not value.isfinite()]
        if not bad and not suspects:
            return f"iteration {self.iter}: numbers of another process are not finite."
        what = ", ".join(bad) or f"matching costs of images {suspects} of the batch"
        files = [x.get("file_name", x.get("image_id", "?")) for x in batch]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return (
            f"iteration {self.iter}: {what} not finite. Batch: {files}. First non-finite tensor: "
            f"{self.first_non_finite(model, batch)}. Learning rates {rates}, AMP {self.amp_dtype}."
        )

    def first_non_finite(self, model: nn.Module, batch: list[dict]) -> str:
        """Finds the first parameter, input or output that is not finite, by running again."""
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                return f"parameter {name}"
        for x in batch:
            if not x["image"].float().isfinite().all():
                return f"image {x.get('file_name')}"
        found: list[str] = []
        hooks = [
            module.register_forward_hook(_recorder(name, found))
            for name, module in model.named_modules()
        ]
        try:
            # losses are left out: they talk to the other processes, which do not answer
            with torch.no_grad(), self._autocast():
                model.predict(batch, model.groups)
        finally:
            for hook in hooks:
                hook.remove()
        return f"output of {found[0]}" if found else "none in the forward pass"

    def state_dict(self) -> dict:
        """Returns iteration, optimizer, gradient scaler, seed and the iterations left out."""
        own = {"grad_scaler": self.grad_scaler.state_dict(), "seed": self.seed}
        return {**super().state_dict(), **own, "left_out": self.left_out}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: the state belongs to parameters of other shapes.
        """
        self._check_shapes(state_dict["optimizer"])
        optimizer = spread_optimizer(state_dict["optimizer"], self.optimizer)
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.seed = state_dict["seed"]
        self.left_out = state_dict.get("left_out", 0)

    def _check_shapes(self, optimizer_state: dict) -> None:
        """Compares shapes, which PyTorch does not: its fused AdamW would write past the end."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        known = optimizer_state["state"]
        for i, parameter in enumerate(parameters):
            average = known.get(i, {}).get("exp_avg", parameter)
            if average.shape != parameter.shape or len(known) not in (0, len(parameters)):
                raise CheckpointError(
                    "the checkpoint's optimizer belongs to a model of other shapes (another "
                    "MODEL.DETR.NUM_GROUPS, NUM_OBJECT_QUERIES or NUM_CLASSES?): resume with the "
                    "configuration of that run, or start a new one from it with MODEL.WEIGHTS"
                )


def check_gradients(model: nn.Module, *, is_alone: bool) -> None:
    """Checks that every parameter which is to be trained has a gradient.

    One without a gradient belongs to an output that nothing reads, as a feature map that
    MODEL.DETR.IN_FEATURES leaves out. Several processes would wait for it for ever.

    Args:
        is_alone: whether this process trains alone; it goes on with a warning.

    Raises:
        UserError: there is such a parameter, and there are other processes.
    """
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if not names:
        return
    modules = sorted({f"{name.rpartition('.')[0]}.*" for name in names})
    text = (
        f"{len(names)} parameters have no gradient, {names[0]} for one: their outputs are not used "
        f'(is MODEL.DETR.IN_FEATURES complete?). MODEL.FREEZE "{modules[:8]}" leaves them out'
    )
    if not is_alone:
        raise UserError(text)
    logger.warning("%s", text)


def _recorder(name: str, found: list[str]) -> Callable[..., None]:
    def record(module: nn.Module, inputs: object, output: object) -> None:
        tensors = output.values() if isinstance(output, dict) else [output]
        for x in tensors:
            if isinstance(x, torch.Tensor) and x.is_floating_point() and not x.isfinite().all():
                found.append(name or "the model")

    return record
