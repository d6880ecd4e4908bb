"""Loading of checkpoints: group-aware, and never silent about what did not fit."""

import logging
import os
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..groups import QueryGroups, resize_query_bank
from ..layers.per_group import PerGroup
from ..modeling.queries import QueryBank
from ..name_patterns import matching_names
from .files import (
    CheckpointError,
    CheckpointWriteError,
    UnreadableCheckpointError,
    is_of_a_run,
    read_file,
    write_safely,
)

logger = logging.getLogger(__name__)
NOISE = 0.02  # relative to the bank's spread; copies of a query would otherwise train alike


class GroupCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for models with query banks.

    A bank of other K or N is resized group by group and the log says so. Files are written under a
    temporary name first and given to the disk, so that whatever interrupts a save leaves the
    previous one as it was; a run whose last checkpoint is damaged resumes from the one before.

    Args:
        load_only: patterns of the names that a new run takes from a checkpoint (MODEL.LOAD_ONLY);
            all, if there are none. A resumed run takes everything.

    Attributes:
        trust: whether files may run code when they are read; by default they cannot.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, load_only=(), **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.load_only, self.wanted, self.is_new_use = tuple(load_only), (), False
        self.trust = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Detectron2's, with an error that names a missing file."""
        self.is_new_use = checkpointables == []
        self.wanted = self.load_only if self.is_new_use else ()
        if path and "://" not in path and not os.path.isfile(path):
            raise CheckpointError(f"the checkpoint {path} (MODEL.WEIGHTS) does not exist")
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # Detectron2 keeps it after an error

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self.resumable_files())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from, "" if there is none."""
        return next(iter(self.resumable_files()), "")

    def resumable_files(self) -> list[str]:
        """A run's checkpoints: the one it says is the last, then the others from new to old."""
        found = [p for p in Path(self.save_dir).glob("model_*.pth") if is_of_a_run(p.stem)]
        found.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        last = super().get_checkpoint_file()
        if os.path.isfile(last):
            found = [Path(last), *(p for p in found if p != Path(last))]
        return [str(p) for p in found]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resumes from the newest checkpoint that can be read, or else loads `path`.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        files = self.resumable_files() if resume else []
        for i, file in enumerate(files):
            try:
                return self.load(file)
            except UnreadableCheckpointError as error:
                before = files[i + 1 : i + 2]
                if not before:
                    raise
                logger.warning("%s. Resuming from %s, the one before", error, before[0])
        return self.load(path, checkpointables=[])

    def save(self, name: str, *, tag: bool = True, **kwargs) -> None:
        """Writes `name`.pth, and unless `tag` is False makes it the one that is resumed from.

        Raises:
            CheckpointWriteError: the disk is full, or there is no permission.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            write_safely(path, {"model": self.model.state_dict(), **parts, **kwargs})
            if tag:
                self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            raise CheckpointWriteError(
                f"the checkpoint {path} could not be written ({error}). Is the disk full? Free "
                "space, or keep fewer (SOLVER.KEEP_CHECKPOINTS 2); the ones before are untouched"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the checkpoint to resume from, in a file that is never half written."""
        write_safely(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            return _detectron2_content(read_file(filename, trust=self.trust))
        loaded = read_file(filename, trust=self.trust)
        loaded = loaded if "model" in loaded else {"model": loaded}
        if "model_state" in loaded["model"]:  # pycls's .pyth
            model = loaded["model"]["model_state"]
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if "patch_embed.proj.weight" in loaded["model"]:
            loaded["model"] = _swin_backbone(loaded["model"])
        return loaded

    def _load_model(self, checkpoint: dict):
        if self.is_new_use and "mean_weights" in checkpoint:
            logger.info("the checkpoint has a running mean of its weights (MODEL.EMA): it is used")
            checkpoint["model"] = checkpoint["mean_weights"]["model"]
        if self.wanted:
            found = checkpoint["model"]
            names = [matching_names(found, x, "MODEL.LOAD_ONLY") for x in self.wanted]
            checkpoint["model"] = {name: found[name] for part in names for name in part}
        if not checkpoint.get("matching_heuristics", False):
            for name, module in self.model.named_modules():
                if isinstance(module, QueryBank):
                    _fit_bank(checkpoint["model"], name, module)
                elif isinstance(module, PerGroup):
                    _fit_parts(checkpoint["model"], name, module)
        incompatible = super()._load_model(checkpoint)
        _warn_if_nothing_loaded(self.model, incompatible)
        return incompatible


def _detectron2_content(content: dict) -> dict:
    """A pickle of Detectron2's or Detectron1's model zoo as the checkpoint that it stands for."""
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    model = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _swin_backbone(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier in Microsoft's names as a backbone: without its head and its masks."""
    dropped = ("head.", "norm.")
    kept = {k: x for k, x in model.items() if not k.startswith(dropped) and "attn_mask" not in k}
    logger.info("a Swin Transformer's checkpoint: %d tensors for the backbone", len(kept))
    return {f"backbone.{key}": value for key, value in kept.items()}


def _fit_bank(state_dict: dict[str, Tensor], name: str, bank: QueryBank) -> None:
    """Replaces a bank of other K or N in the state dict by one that fits the model."""
    weight, shape = state_dict.get(f"{name}.weight"), state_dict.get(f"{name}.shape")
    if weight is None or shape is None:
        return
    num_groups, num_queries = torch.as_tensor(shape).tolist()
    old = QueryGroups(num_queries, num_groups)
    new = QueryGroups(bank.groups.num_queries, bank.groups.num_groups)
    if old == new:
        return
    logger.warning(
        "%s: the checkpoint has K = %d groups of N = %d queries, the model K = %d of N = %d: "
        "resized group by group (the first queries of each group are kept, missing ones are copies "
        "with a little noise)",
        name,
        old.num_groups,
        old.num_queries,
        new.num_groups,
        new.num_queries,
    )
    state_dict[f"{name}.weight"] = _resize(torch.as_tensor(weight), old, new)
    state_dict[f"{name}.shape"] = bank.shape.cpu().clone()


def _fit_parts(state_dict: dict[str, Tensor], name: str, module: PerGroup) -> None:
    """The same for what is stacked by group: a part is a bank of one row a group."""
    for own, parameter in module.named_parameters(f"{name}", recurse=False):
        found = state_dict.get(own)
        if found is None or len(found) == len(parameter):
            continue
        old, new = QueryGroups(1, len(found)), QueryGroups(1, len(parameter))
        logger.warning("%s: resized from K = %d to K = %d groups", own, len(found), len(parameter))
        state_dict[own] = _resize(torch.as_tensor(found), old, new)


def _resize(weight: Tensor, old: QueryGroups, new: QueryGroups) -> Tensor:
    """Rows kept, or copied with a little noise."""
    resized = resize_query_bank(weight, old, new)
    kept = resize_query_bank(torch.arange(len(weight)), old, new)  # which old row each one is
    is_copy = ~_first_occurrences(kept)
    noise = torch.randn(resized.shape, generator=torch.Generator().manual_seed(0))
    resized[is_copy] += NOISE * weight.std() * noise[is_copy].to(resized.dtype)
    return resized


def _first_occurrences(values: Tensor) -> Tensor:
    seen: set[int] = set()
    return torch.tensor([not (v in seen or seen.add(v)) for v in values.tolist()])


def _warn_if_nothing_loaded(model: nn.Module, incompatible) -> None:
    missing = set(incompatible.missing_keys) | {key for key, *_ in incompatible.incorrect_shapes}
    for part in ("backbone.", "head."):
        keys = [key for key in model.state_dict() if key.startswith(part)]
        if keys and missing.issuperset(keys):
            log = logger.warning if part == "backbone." else logger.info
            log("nothing of the checkpoint fits %s*: that part starts from random weights", part)
