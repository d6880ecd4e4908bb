"""Loading of checkpoints: group-aware, and never silent about what did not fit."""

import http.client
import logging
import os
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..distributed import first_process_first, whole_state
from ..errors import UserError
from ..modeling.vit import ViT
from ..name_patterns import matching_names
from . import torchvision_files  # noqa: F401  registers torchvision://
from .files import (
    CheckpointError,
    CheckpointWriteError,
    UnreadableCheckpointError,
    check_exists,
    is_of_a_run,
    read_file,
    write_safely,
)
from .fitting import fit_state_dict, unmatched_classes
from .hub import is_address
from .hub_weights import local_file
from .loading_report import report_loading, states_of
from .official import resnet_key
from .silent_keys import warn_of_silent_keys
from .structure import check_filled, check_structure
from .transformers_files import pretrained_backbone
from .vit_files import name_vit

logger = logging.getLogger(__name__)
# names of Microsoft's Swin
SWIN_MARKS = {"patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"}


class GroupCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for models with query banks.

    A bank of other K or N is resized group by group, rows of classes are matched by their names
    if both sides know them, and the log has a table of what was loaded. Files are written under a
    temporary name first and given to the disk, so that whatever interrupts a save leaves the
    previous one as it was; a run whose last checkpoint is damaged resumes from the one before.

    Args:
        load_only: patterns of the names that a new run takes from a checkpoint (MODEL.LOAD_ONLY);
            all, if there are none. A resumed run takes everything.

    Attributes:
        trust: whether files may run code when they are read; by default they cannot.
        states: the state of every tensor of the model after loading, see `states_of`.
        unmatched: classes of the model that the checkpoint does not know by name.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, load_only=(), **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.load_only, self.wanted, self.is_new_use = tuple(load_only), (), False
        self.trust = False
        self.states: dict[str, str] = {}
        self.unmatched: list[str] = []

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Loads a checkpoint as Detectron2 does, with an error that names a missing file.

        Models of the Hugging Face hub, hf://owner/name, are converted first. Those that are the
        model's own backbone, and their folders, are read by transformers.
        """
        self.is_new_use = checkpointables == []
        self.wanted = self.load_only if self.is_new_use else ()
        backbone = pretrained_backbone(path, self.model) if path else None
        if backbone is not None:
            self._load_model({"model": backbone[0], "left_out": backbone[1]})
            return {}
        if is_address(path):
            with first_process_first():
                path = str(local_file(path))
        if not path:
            logger.warning("MODEL.WEIGHTS is empty: the whole model starts from random weights")
        check_exists(path)
        if path and os.path.isdir(path):
            raise CheckpointError(f"the checkpoint {path} (MODEL.WEIGHTS) is a folder")
        try:
            return super().load(path, checkpointables)
        except (OSError, http.client.HTTPException) as error:
            if "://" not in path:
                raise
            raise CheckpointError(
                f"MODEL.WEIGHTS {path} cannot be reached ({error}): download it on a machine with "
                "a network, and give the path of the file"
            ) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 keeps it after an error

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self.resumable_files())

    def get_checkpoint_file(self) -> str:
        """Returns the checkpoint to resume from, "" if there is none."""
        return next(iter(self.resumable_files()), "")

    def resumable_files(self) -> list[str]:
        """Lists the checkpoints of the run: the last one, then the others from new to old."""
        files = Path(self.save_dir).glob("model_*.pth")
        found = [p for p in files if is_of_a_run(p.stem) and p.is_file()]
        found.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        last = self._last_checkpoint()
        if last is not None:
            found = [last, *(p for p in found if p != last)]
        return [str(p) for p in found]

    def _last_checkpoint(self) -> Path | None:
        """The checkpoint that the file `last_checkpoint` names; None if it names none of here."""
        note = Path(self.save_dir, "last_checkpoint")
        if not note.exists():
            return None
        try:
            name = note.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("%s cannot be read (%s): the newest checkpoint is taken", note, error)
            return None
        last = Path(self.save_dir, name)
        if Path(name).name != name or not last.is_file():
            logger.warning("%s names no file of its folder: the newest checkpoint is taken", note)
            return None
        return last

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

        The first process alone writes. Where parameters are spread over the processes, all of them
        have to call this, and the file is that of a training whose parameters are not.

        Raises:
            CheckpointWriteError: the disk is full, or there is no permission.
        """
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        content = whole_state({"model": self.model.state_dict(), **parts, **kwargs})
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            write_safely(path, content)
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

    def load_to_use(self, content: dict, path: str) -> None:
        """Loads a model that is to be used rather than trained on.

        Args:
            content: of the checkpoint, see :func:`read_content`.

        Raises:
            CheckpointError: a tensor of the model would stay random, or is not finite.
        """
        self.is_new_use, self.wanted = True, self.load_only
        try:
            self._load_model(content)
        except CheckpointError:
            raise
        except UserError as error:
            raise CheckpointError(f"{path}: {error}") from error
        check_filled(self.states, self.model.state_dict(), path)

    def _load_file(self, filename: str) -> dict:
        has_vit = any(isinstance(module, ViT) for module in self.model.modules())
        return read_content(filename, trust=self.trust, has_vit=has_vit)

    def _load_model(self, checkpoint: dict):
        if self.is_new_use and "mean_weights" in checkpoint:
            logger.info("the checkpoint has a running mean of its weights (MODEL.EMA): it is used")
            checkpoint["model"] = checkpoint["mean_weights"]["model"]
        if self.wanted:
            found = checkpoint["model"]
            names = [matching_names(found, x, "MODEL.LOAD_ONLY") for x in self.wanted]
            checkpoint["model"] = {name: found[name] for part in names for name in part}
        changed: list[str] = []
        if not checkpoint.get("matching_heuristics", False):
            own = self.checkpointables.get("run")
            classes = (checkpoint.get("run", {}).get("classes"), own and own.classes)
            self.unmatched = unmatched_classes(*classes)
            if self.is_new_use:
                theirs = checkpoint.get("run", {}).get("config")
                warn_of_silent_keys(theirs, getattr(own, "config", None))
            changed = fit_state_dict(checkpoint["model"], self.model, *classes)
        incompatible = super()._load_model(checkpoint)
        self.states = states_of(self.model, incompatible, changed)
        left_out = checkpoint.get("left_out", ())
        report_loading(self.states, list(incompatible.unexpected_keys), left_out, self.model)
        return incompatible


def read_content(filename: str, *, trust: bool = False, has_vit: bool = True) -> dict:
    """Reads a checkpoint of this package, of Detectron2, pycls, torchvision, Swin or a plain ViT.

    Args:
        trust: whether the file may run code.
        has_vit: whether a plain ViT is for this package's; one that is for another, such as a
            user's own, keeps its names.

    Returns:
        a dictionary with "model", a state dict, and what else the file holds. With a plain ViT's
        "left_out" has the names of tensors that are no part of a backbone.

    Raises:
        UnreadableCheckpointError: naming the file and the remedy.
        CheckpointError: it has a ViT of another architecture.
    """
    content = _read_content(filename, trust)
    content.pop("left_out", None)
    vit = name_vit(content["model"], filename) if has_vit else None
    if vit is not None:
        content["model"], content["left_out"] = vit
        content.pop("matching_heuristics", None)  # of names, which are known now
    elif SWIN_MARKS <= set(content["model"]):
        content["model"] = _swin_backbone(content["model"])
    return content


def _read_content(filename: str, trust: bool) -> dict:
    loaded = read_file(filename, trust=trust)
    if not isinstance(loaded, dict):
        return check_structure(loaded, filename)
    if filename.endswith(".pkl"):
        return check_structure(_detectron2_content(loaded), filename)
    loaded = loaded if "model" in loaded else {"model": loaded}
    if isinstance(loaded["model"], dict) and "model_state" in loaded["model"]:  # pycls's .pyth
        model = loaded["model"]["model_state"]
        found = {"model": model, "__author__": "pycls", "matching_heuristics": True}
        return check_structure(found, filename)
    check_structure(loaded, filename)
    if "layer1.0.conv1.weight" in loaded["model"]:
        loaded["model"] = _torchvision_backbone(loaded["model"])
    return loaded


def _detectron2_content(content: dict) -> dict:
    """Makes a checkpoint of a pickle of Detectron2's or Detectron1's model zoo."""
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    if not isinstance(blobs, dict):
        return {"model": blobs}
    model = {k: value for k, value in blobs.items() if not str(k).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _torchvision_backbone(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames torchvision's ResNet as Detectron2's backbone, without its classifier."""
    names = {name: resnet_key(f"backbone.0.body.{name}") for name in model if name[:3] != "fc."}
    renamed = {new: model[name] for name, new in names.items() if new}
    logger.info("a torchvision ResNet's checkpoint: %d tensors for the backbone", len(renamed))
    return renamed


def _swin_backbone(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames Microsoft's Swin classifier as a backbone, without its head and its masks."""
    dropped = ("head.", "norm.")
    kept = {k: x for k, x in model.items() if not k.startswith(dropped) and "attn_mask" not in k}
    logger.info("a Swin Transformer's checkpoint: %d tensors for the backbone", len(kept))
    return {f"backbone.{key}": value for key, value in kept.items()}
