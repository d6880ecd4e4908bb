"""torch.compile on the parts of a model that it can compile whole (MODEL.COMPILE)."""

import logging

from detectron2.engine import HookBase
from torch import nn

logger = logging.getLogger(__name__)
REPORT_AFTER = 5  # iterations
ENCODERS = ("head.encoder", "head.neck.encoder")  # the latter is Mask2Former's


def compile_parts(model: nn.Module, backend: str) -> list[str]:
    """Compiles backbone, encoder and every decoder layer in place; their parameters keep names.

    Matching and losses stay as they are: they wait for the host, and their shapes change with every
    batch.

    Returns:
        what was compiled.
    """
    decoder_layers = model.get_submodule("head.decoder.layers")
    layers = {f"head.decoder.layers.{i}": x for i, x in decoder_layers.named_children()}
    encoder = {name: model.get_submodule(name) for name in ENCODERS if _exists(model, name)}
    parts = {"backbone": model.backbone, **encoder, **layers}
    for part in parts.values():
        part.compile(backend=backend)
    logger.info("MODEL.COMPILE %s: %s; the first iterations are slow", backend, ", ".join(parts))
    return list(parts)


def _exists(model: nn.Module, name: str) -> bool:
    try:
        return any(True for _ in model.get_submodule(name).parameters())
    except AttributeError:
        return False


class CompileReport(HookBase):
    """Logs once what the compiler did: graphs, breaks between them, sizes compiled anew."""

    def after_step(self) -> None:
        """Logs after a few iterations, in which images of several sizes have passed."""
        if self.trainer.iter + 1 == self.trainer.start_iter + REPORT_AFTER:
            logger.info("%s", describe_compilation())


def describe_compilation() -> str:
    """Describes what was compiled in this process so far."""
    from torch._dynamo.utils import counters

    breaks = sum(counters["graph_break"].values())
    reasons = "; ".join(list(counters["graph_break"])[:3])
    return (
        f"torch.compile: {counters['stats']['unique_graphs']} graphs of "
        f"{counters['stats']['calls_captured']} operations, {breaks} breaks"
        f"{f' ({reasons})' if reasons else ''}"
    )
