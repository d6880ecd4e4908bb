"""Parameters, gradients and optimizer divided among the processes (SOLVER.SHARDING), by FSDP2.

Every process holds a part of each parameter (Rajbhandari et al., SC 2020: ZeRO). A unit, such as a
block of a ViT, is collected for its forward, and again for its backward, which leaves each process
its part of the gradient. The numbers are those of DistributedDataParallel.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed import fsdp

from ..distributed import SPREAD, whole
from ..errors import UserError
from ..modeling.meta_arch import SetPredictor

logger = logging.getLogger(__name__)
# the layers that are units of their own; all else is one more
UNITS = (
    *("backbone.net.blocks", "head.encoder.layers", "head.neck.encoder.layers"),
    "head.decoder.layers",
)


def is_sharded(cfg: CfgNode) -> bool:
    """Tells whether this training is sharded; a single process has nobody to share with.

    Raises:
        UserError: SOLVER.SHARDING does not go together with another key, or with this PyTorch.
    """
    if not cfg.SOLVER.SHARDING:
        return False
    if cfg.MODEL.COMPILE:
        raise UserError(
            f"SOLVER.SHARDING {cfg.SOLVER.SHARDING} does not go together with MODEL.COMPILE "
            f"{cfg.MODEL.COMPILE}: the compiler cannot follow parameters that come and go. Empty "
            "one of them"
        )
    if not hasattr(fsdp, "fully_shard"):
        raise UserError(
            f"SOLVER.SHARDING {cfg.SOLVER.SHARDING} needs PyTorch 2.6 or later, and this is "
            f"{torch.__version__}"
        )
    if comm.get_world_size() == 1:
        logger.warning(
            "SOLVER.SHARDING %s: there is one process, which trains the whole model",
            cfg.SOLVER.SHARDING,
        )
    return comm.get_world_size() > 1


def shard(model: nn.Module) -> None:
    """Divides the parameters of a model among the processes, in place.

    The processes must have the same weights. The model takes state dicts of whole tensors
    afterwards; those that it gives have parts.
    """
    device = next(model.parameters()).device
    mesh = dist.device_mesh.init_device_mesh(device.type, (comm.get_world_size(),))
    units = units_of(model)
    for unit in units:
        fsdp.fully_shard(unit, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_spread_state)
    held = sum(part.numel() for part in parts_of(model))
    total = sum(p.numel() for p in model.parameters())
    logger.info(
        "%d units: this process holds %.2f M of %.2f M parameters",
        len(units) + 1,
        held / 1e6,
        total / 1e6,
    )


def units_of(model: nn.Module) -> list[nn.Module]:
    """Lists the layers that are collected one by one: those of ViT, encoder and decoder."""
    modules = dict(model.named_modules())
    return [layer for name in UNITS if name in modules for layer in modules[name].children()]


def part_of(tensor: Tensor) -> Tensor:
    """Returns what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, SPREAD) else tensor


@torch.no_grad()
def parts_of(model: nn.Module) -> list[Tensor]:
    """Returns what this process holds of the parameters of a model, without gradients."""
    return [part_of(p) for p in model.parameters()]


def are_finite(parameters: Iterator[Tensor]) -> bool:
    """Tells whether all numbers are finite, where parts are spread in those of all processes."""
    tensors = [p.detach() for p in parameters]
    bad = torch.stack([~part_of(x).isfinite().all() for x in tensors]).any().float()
    if any(isinstance(x, SPREAD) for x in tensors):
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    return not bad


def spread_like(value: Tensor, example: Tensor) -> Tensor:
    """Returns this process's part of a whole tensor, divided as another one of its shape is."""
    if not isinstance(example, SPREAD) or isinstance(value, SPREAD):
        return value
    parts = dist.tensor.distribute_tensor(
        value.to(example.device), example.device_mesh, example.placements
    )
    return parts.clone()  # what was cut out of a whole tensor would keep all of it in memory


def spread_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """Divides an optimizer's state of whole tensors as its parameters are divided."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    divided = {
        i: {
            name: spread_like(value, parameters[i])
            if isinstance(value, Tensor) and value.shape == parameters[i].shape
            else value
            for name, value in values.items()
        }
        for i, values in state["state"].items()
    }
    return {**state, "state": divided}


def _spread_state(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Divides the tensors of a state dict, ahead of its loading."""
    own = dict(module.named_parameters())
    for name, parameter in own.items():
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state_dict[prefix + name] = spread_like(value, parameter)


class WholeCopy:
    """A copy of a model that is to be sharded, which has weights only while it is used.

    Processes run it each for itself, on as many images as they like: those of a test set need not
    be the same number in every process.

    Attributes:
        model: the copy, whose parameters are empty except within :meth:`filled`.
    """

    def __init__(self, model: SetPredictor):
        self.model: SetPredictor = copy.deepcopy(model).requires_grad_(False)
        self._empty()

    def _empty(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.new_empty(0)

    @contextlib.contextmanager
    def filled(self, source: nn.Module) -> Iterator[nn.Module]:
        """Within, the copy has the weights of `source`; all processes have to enter together."""
        for own, parameter in zip(self.model.parameters(), source.parameters(), strict=True):
            own.data = whole(parameter.detach())
        for value, buffer in zip(self.model.buffers(), source.buffers(), strict=True):
            value.copy_(buffer)
        try:
            yield self.model
        finally:
            self._empty()
