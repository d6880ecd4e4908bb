"""One training iteration, and what is said when its numbers are not finite."""

import contextlib
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn

from ..checkpoint import CheckpointError
from ..errors import UserError
from ..losses.criterion import average_over_processes
from ..losses.matcher import NonFiniteCostError


class NonFiniteLossError(UserError):
    """A loss is NaN or infinite; the message says where it began."""


class TrainStep(SimpleTrainer):
    """Detectron2's iteration with autocast on any device, full-model clipping and a finite check.

    Random numbers of an iteration depend on the seed, the process and the iteration alone, so that
    a resumed run draws what the uninterrupted one would have drawn.

    Args:
        clip_norm: bound of the norm of all gradients together; 0 for none.
        amp_dtype: of autocast; None for full precision.
        accumulate_steps: parts of a batch that go through the model one after another, which takes
            less memory; the gradient is that of the whole batch.
    """

    def __init__(
        self, model, data_loader, optimizer, *, clip_norm, amp_dtype, seed, accumulate_steps=1
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate_steps = accumulate_steps
        self.clip_norm, self.amp_dtype, self.seed = clip_norm, amp_dtype, seed
        self.device = next(model.parameters()).device
        scaled = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def run_step(self):
        """Data, losses, gradients, check, update."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(hash((self.seed, comm.get_rank(), self.iter)) % 2**63)
        self.optimizer.zero_grad()
        losses = self.compute_gradients(batch)
        self.after_backward()
        names, values = list(losses), torch.stack(list(losses.values())).cpu()
        if not values.isfinite().all():
            raise NonFiniteLossError(self._describe(batch, dict(zip(names, values, strict=True))))
        self._write_metrics(dict(zip(names, values, strict=True)), data_time)
        self._update()

    def compute_gradients(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        """Backward of all parts of the batch; returns the batch's losses, without gradients."""
        num_targets = average_over_processes(sum(len(x["instances"]) for x in batch))
        size = -(-len(batch) // self.accumulate_steps)
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        totals: dict[str, torch.Tensor] = {}
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            with contextlib.nullcontext() if is_last else self._no_communication():
                losses = self.compute_losses(part, num_targets)
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
        return totals

    def _no_communication(self):
        """Gradients are exchanged once a batch, after its last part."""
        is_wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        return self.model.no_sync() if is_wrapped else contextlib.nullcontext()

    def compute_losses(self, batch: list[dict], num_targets: float) -> dict[str, torch.Tensor]:
        """The model's weighted losses under autocast."""
        with self._autocast():
            try:
                return self.model(batch, num_targets)
            except NonFiniteCostError as error:
                raise NonFiniteLossError(self._describe(batch, {}, error.images)) from error

    def _autocast(self) -> torch.autocast:
        enabled = self.amp_dtype is not None
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled)

    def _update(self):
        if self.clip_norm:
            self.grad_scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _describe(self, batch, losses, images=()) -> str:
        bad = [name for name, value in losses.items() if not value.isfinite()]
        what = f"losses {', '.join(bad)}" if bad else f"matching costs of batch images {images}"
        files = [x.get("file_name", x.get("image_id", "?")) for x in batch]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return (
            f"iteration {self.iter}: {what} not finite. Batch: {files}. First non-finite tensor: "
            f"{self.first_non_finite(batch)}. Learning rates {rates}, AMP {self.amp_dtype}. The "
            "last checkpoint is untouched: resume from it without AMP or with SOLVER.AMP.DTYPE "
            "bfloat16, or start from it as MODEL.WEIGHTS with a lower SOLVER.BASE_LR"
        )

    def first_non_finite(self, batch: list[dict]) -> str:
        """The first parameter, input or module output that is not finite, by running once more."""
        model = self.model.module if hasattr(self.model, "module") else self.model
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

    def state_dict(self):
        """Iteration, optimizer, gradient scaler and seed."""
        scaler = self.grad_scaler.state_dict()
        return {**super().state_dict(), "grad_scaler": scaler, "seed": self.seed}

    def load_state_dict(self, state_dict):
        """The counterpart of :meth:`state_dict`.

        Raises:
            CheckpointError: the state belongs to parameters of other shapes.
        """
        self._check_shapes(state_dict["optimizer"])
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.seed = state_dict["seed"]

    def _check_shapes(self, optimizer_state: dict) -> None:
        """PyTorch does not compare shapes, and its fused AdamW would write past the end."""
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


def _recorder(name: str, found: list[str]):
    def record(module, inputs, output):
        tensors = output.values() if isinstance(output, dict) else [output]
        for x in tensors:
            if isinstance(x, torch.Tensor) and x.is_floating_point() and not x.isfinite().all():
                found.append(name or "the model")

    return record
