"""A training step on tensors without data, of which the memory in use is counted.

Storages are counted from the operation that makes them until nothing refers to them any more, so
that the peak has what autograd keeps for backward, what is computed again, the copies of autocast
and the gradients under way. (`torch.distributed._tools.MemTracker` counts alike, but has no peak
of what is not gradient, which sharding and accumulation need, and follows modules that take
tensors alone.)
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import structures
from ..engine.freezing import freeze
from ..engine.sharding import units_of
from ..groups import QueryGroups
from ..modeling.batch import padded_size
from ..modeling.meta_arch import SetPredictor
from ..structures import Matches, map_tensors
from .fake_device import implementations_of

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


@dataclass(frozen=True)
class ParameterBytes:
    """The sizes of a model's parameters and buffers, in bytes.

    Attributes:
        all: parameters and buffers.
        trained: parameters that have gradients.
        largest_unit: the largest layer of those that sharding gathers one at a time.
        outside_units: parameters and buffers outside of these layers.
    """

    all: int
    trained: int
    largest_unit: int
    outside_units: int


@dataclass(frozen=True)
class StepPeaks:
    """The memory of forward and backward beyond what stands before them, in bytes.

    Attributes:
        parameters: the sizes of the model.
        peak: with the gradients of this step, from none to all.
        peak_beside_gradients: without the gradients of parameters.
    """

    parameters: ParameterBytes
    peak: int
    peak_beside_gradients: int


class _WithoutData(TorchFunctionMode):
    """Makes parameters on the meta device; numbers that the host reads stay numbers."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages while they are in use; those of `known` tensors are left out."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.sizes = {x.untyped_storage()._cdata: 0 for x in known}
        self.gradients: set[int] = set()
        self.now = self.peak = self.beside = self.peak_beside = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Calls the operation, and counts what it makes."""
        if (
            func is torch.ops.prim.device.default
        ):  # most calls: fake tensors ask for it all the time
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.add(x)
        return out

    def add(self, x: Tensor) -> None:
        """Counts the storage of a tensor, unless it is counted already."""
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        weakref.finalize(storage, self._remove, key)
        self.now, self.beside = self.now + size, self.beside + size
        self.peak = max(self.peak, self.now)
        self.peak_beside = max(self.peak_beside, self.beside)

    def _remove(self, key: int) -> None:
        size = self.sizes.pop(key)
        self.now -= size
        if key in self.gradients:
            self.gradients.remove(key)
        else:
            self.beside -= size

    def mark_gradient(self, parameter: Tensor) -> None:
        """Tells the gradient that a parameter has got from other storages."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self.sizes and key not in self.gradients:
            self.gradients.add(key)
            self.beside -= self.sizes[key]


class FakeModel:
    """A model on tensors without data, whose training steps are counted.

    Args:
        cfg: the configuration; its device does not matter.
    """

    def __init__(self, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.INPUT.GRID_MASK = "cpu", 0.0
        self.model, self.mode = build_without_data(cfg), FakeTensorMode()
        self.parameters = bytes_of(self.model)
        _make_fake(self.model, self.mode)
        self.model.criterion.assign = first_queries

    def count(
        self, batch: list[dict], dtype: torch.dtype | None, device: str, *, sharded: bool = False
    ) -> StepPeaks:
        """Counts the memory of a training step.

        Args:
            batch: inputs of the model, with data; of images the sizes are read alone.
            dtype: the type of autocast; None for full precision.
            device: "cuda" or "cpu", whose kernels are counted.
            sharded: whether the copies of weights that autocast makes are not kept, as in a
                training whose parameters are divided among processes.
        """
        structures._sizes.cache_clear()  # tensors without data are of one step alone
        try:
            with implementations_of(device):
                live = self._run(batch, dtype, keeps_copies=not sharded)
        finally:
            structures._sizes.cache_clear()
            self.model.zero_grad()
        return StepPeaks(self.parameters, live.peak, live.peak_beside)

    def _run(
        self, batch: list[dict], dtype: torch.dtype | None, *, keeps_copies: bool
    ) -> LiveStorages:
        model, live = self.model, LiveStorages([*self.model.parameters(), *self.model.buffers()])
        inputs = self._give(batch, live)
        trained = [p for p in model.parameters() if p.requires_grad]
        handles = [p.register_post_accumulate_grad_hook(live.mark_gradient) for p in trained]
        with self.mode, live:
            with torch.autocast(
                "cpu", dtype, enabled=dtype is not None, cache_enabled=keeps_copies
            ):
                losses = model(inputs)
            total = sum(losses.values())
            del losses
            total.backward()
        for handle in handles:
            handle.remove()
        return live

    def _give(self, batch: list[dict], live: LiveStorages) -> list[dict]:
        """Makes the inputs fake; the model gets images and targets without reading numbers."""
        model = self.model
        model.__dict__.pop("build_targets", None)
        targets: Any = model.build_targets(batch)
        targets = map_tensors(targets, self.mode.from_tensor)
        sizes = [tuple(x["image"].shape[-2:]) for x in batch]
        shape = (len(batch), *batch[0]["image"].shape[:-2], *padded_size(sizes, model.padding))
        with self.mode:
            images = ImageList(torch.empty(shape), sizes)
        for x in (images.tensor, *tree_leaves(vars(targets))):
            if isinstance(x, Tensor):
                live.add(x)
        model.__dict__.update(preprocess_image=lambda _: images, build_targets=lambda _: targets)
        return [{k: self._faked(x) for k, x in sample.items()} for sample in batch]

    def _faked(self, x: Any) -> Any:
        return self.mode.from_tensor(x) if isinstance(x, Tensor) else x


def build_without_data(cfg) -> SetPredictor:
    """Builds a model in training whose parameters are on the meta device."""
    with _WithoutData():
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    freeze(model, cfg.MODEL.FREEZE)
    return model.train()


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces parameters and buffers by fake ones of a CPU; what is shared stays shared."""
    known: dict[int, Tensor] = {}
    with mode:
        for x in (*model.parameters(), *model.buffers()):
            fake = torch.empty(x.shape, dtype=x.dtype)
            is_parameter = isinstance(x, nn.Parameter)
            known[id(x)] = nn.Parameter(fake, x.requires_grad) if is_parameter else fake
    for module in model.modules():
        owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owner in owners:
            owner.update({k: known[id(x)] for k, x in owner.items() if x is not None})


def bytes_of(model: SetPredictor) -> ParameterBytes:
    """Adds up the sizes of a model's parameters and buffers."""

    def size(module: nn.Module) -> int:
        return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))

    units = [size(unit) for unit in units_of(model)]
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return ParameterBytes(size(model), trained, max(units, default=0), size(model) - sum(units))


def first_queries(costs: list[Tensor], groups: QueryGroups) -> Matches:
    """Assigns to an image's targets the first queries of each group: as many as any assignment."""
    images, queries, targets, first_target = [], [], [], 0
    for b, cost in enumerate(costs):
        num_layers, _, num_targets = cost.shape
        pairs = torch.arange(min(groups.num_queries, num_targets))
        query = torch.cat([pairs + first for first in groups.offsets()])
        queries.append(query.expand(num_layers, -1))
        target = pairs.repeat(groups.num_groups) + first_target
        targets.append(target.expand(num_layers, -1))
        images.append(torch.full(query.shape, b))
        first_target += num_targets
    return Matches(torch.cat(images), torch.cat(queries, 1), torch.cat(targets, 1), groups)
