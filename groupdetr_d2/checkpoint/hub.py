"""Files of models on the Hugging Face hub, through huggingface_hub and the cache that it keeps.

An address is `hf://owner/name`, or `hf://owner/name@revision` with a branch, a tag or a commit.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from .files import CheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
logger = logging.getLogger(__name__)
# files of weights, in the order in which they are looked for; an index names the parts of a model
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in WEIGHTS)
TIMEOUT = 10  # seconds for the hub's first answer
SCHEME = re.compile(r"^hf:/{1,2}(?=[^/])")  # a Path leaves one slash
NAME = r"[A-Za-z0-9][\w.-]*"
ADDRESS = re.compile(rf"({NAME}/{NAME})(?:@([\w.][\w./-]*))?")
PART = re.compile(r"[\w][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(CheckpointError):
    """A model of the hub cannot be had; the message names address, reason and place."""


@dataclass(frozen=True)
class HubAddress:
    """A repository of the hub, `owner/name`, at a revision."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        """Writes the address as a user does."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repository}{at}"


def is_address(weights: str | Path) -> bool:
    """Whether weights are an address of the hub."""
    return bool(SCHEME.match(str(weights)))


def parse_address(text: str | Path) -> HubAddress:
    """Reads an address.

    Raises:
        UserError: it is not written like one.
    """
    found = ADDRESS.fullmatch(SCHEME.sub("", str(text)))
    if not found or ".." in str(text):
        raise UserError(
            f"{text} is no address of the hub: write hf://owner/name or hf://owner/name@revision, "
            "such as hf://IDEA-Research/dab-detr-resnet-50"
        )
    return HubAddress(found[1], found[2] or "main")


class HubModel:
    """The files of one model, each fetched when it is asked for.

    What lies in the cache of huggingface_hub is not fetched again, and is used without a network.

    Attributes:
        commit: the commit of the files; the address's revision, if the hub cannot say.
        reason: why the hub gives nothing; empty if it does.

    Raises:
        UserError: huggingface_hub is not installed.
    """

    def __init__(self, address: HubAddress):
        self.address, self.hub = address, import_hub()
        self.commit, self.reason = address.revision, ""
        self.is_here = self._is_here()
        if not self.is_here:
            self._ask()

    def __str__(self) -> str:
        """Names the model as a user has."""
        return str(self.address)

    @property
    def origin(self) -> str:
        """The address with the commit."""
        return f"hf://{self.address.repository}@{self.commit}"

    def find(self, name: str) -> Path | None:
        """Returns the path of a file on this machine, None if it cannot be had.

        Raises:
            HubError: it cannot be fetched, though the hub has it.
        """
        place = self.place(name)
        if place.is_file():
            return place
        if self.reason or self.is_here:
            return None
        revision = self.address.revision if name == CONFIG else self.commit
        try:  # by the revision, whose commit is then noted for times without a network
            download = self.hub.hf_hub_download
            return Path(download(self.address.repository, name, revision=revision))
        except self.hub.errors.EntryNotFoundError as error:
            if isinstance(error, self.hub.errors.LocalEntryNotFoundError):
                raise self.missing(name, _said(error.__cause__)) from error
            return None
        except Exception as error:  # networks, disks and servers raise many kinds
            raise self.missing(name, _said(error)) from error

    def place(self, name: str) -> Path:
        """Returns the path that a file has in the cache, whether it is there or not."""
        return self._folder() / "snapshots" / self.commit / name

    def _folder(self) -> Path:
        name = f"models--{self.address.repository.replace('/', '--')}"
        return Path(self.hub.constants.HF_HUB_CACHE, name)

    def missing(self, name: str, reason: str = "") -> CheckpointError:
        """Makes the error of a file that the model needs."""
        reason = reason or self.reason
        if not reason:
            return CheckpointError(f"{self} has no {name}: it is no model that can be converted")
        return HubError(
            f"{self}: {name} cannot be had, {reason}; its place in the cache is {self.place(name)}"
            ", where it may also be put by hand"
        )

    def _is_here(self) -> bool:
        """Whether all of a commit, which never changes, is here: weights are fetched last."""
        is_commit = COMMIT.fullmatch(self.commit)
        return bool(is_commit and any(self.place(name).is_file() for name in WEIGHTS))

    def _ask(self) -> None:
        """Asks the hub for the commit of the revision, once and for a few seconds alone."""
        url = self.hub.hf_hub_url(self.address.repository, CONFIG, revision=self.commit)
        try:
            commit = self.hub.get_hf_file_metadata(url, timeout=TIMEOUT).commit_hash
            self.commit = commit or self.commit
            self.reason = "" if commit else f"{self._endpoint()} does not answer like the hub"
        except self.hub.errors.EntryNotFoundError as error:
            raise self.missing(CONFIG) from error
        except Exception as error:  # networks and servers raise many kinds
            self.reason = self._explain(error)
        noted = self._folder() / "refs" / self.address.revision
        if self.reason and noted.is_file():
            self.commit = noted.read_text().strip()
        if self.reason and self.place(CONFIG).is_file():
            logger.warning("%s: %s; the copy in the cache is used", self, self.reason)

    def _endpoint(self) -> str:
        return self.hub.constants.ENDPOINT

    def _page(self) -> str:
        return f"{self._endpoint()}/{self.address.repository}"

    def _explain(self, error: Exception) -> str:
        errors, page = self.hub.errors, self._page()
        login = "log in with `hf auth login` or set HF_TOKEN"
        if isinstance(error, errors.GatedRepoError):
            return f"it is gated: accept its terms on {page}, then {login}"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"{page} does not exist, or is private: check the name, or {login}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{page} has no revision {self.address.revision}"
        return f"{self._endpoint()} cannot be reached ({_said(error)})"


class FolderModel:
    """The files of one model in a folder that `save_pretrained` wrote or that was downloaded.

    Attributes:
        reason: empty; see :class:`HubModel`.
    """

    reason = ""

    def __init__(self, folder: Path):
        self.folder, self.origin = folder, str(folder)

    def __str__(self) -> str:
        """Names the model as a user has."""
        return str(self.folder)

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, None if there is no such file."""
        return self.folder / name if (self.folder / name).is_file() else None

    def missing(self, name: str) -> CheckpointError:
        """Makes the error of a file that the model needs."""
        return CheckpointError(f"{self} has no {name}: it is no folder of a model")


def import_hub() -> ModuleType:
    """Imports huggingface_hub, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors  # noqa: F401  attributes of the former
    except ImportError as error:
        raise UserError(
            f"weights from hf:// need huggingface_hub ({error}): pip install 'groupdetr_d2[hub]'"
        ) from error
    return huggingface_hub


def _said(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def read_json(model: HubModel | FolderModel, name: str) -> dict[str, Any] | None:
    """Reads one of a model's JSON files; None if it has none of that name.

    Raises:
        CheckpointError: the file holds no JSON object.
    """
    path = model.find(name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{model}: {path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{model}: {path} holds no JSON object")
    return content


def weight_files(model: HubModel | FolderModel) -> list[Path]:
    """Finds a model's weights: one file, or the parts that its index names.

    Raises:
        CheckpointError: there are none, or the index names what is no file beside it.
    """
    for file, index_file in zip(WEIGHTS, INDICES, strict=True):
        path = model.find(file)
        if path is not None:
            return [path]
        index = read_json(model, index_file)
        if index is not None:
            return [_part(model, file, name) for name in _part_names(model, index)]
    raise model.missing(" or ".join(WEIGHTS) if not model.reason else WEIGHTS[0])


def _part_names(model: HubModel | FolderModel, index: dict[str, Any]) -> list[str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{model}: the index of its weights names no files")
    return sorted({str(name) for name in names.values()})


def _part(model: HubModel | FolderModel, file: str, name: str) -> Path:
    """Finds a part of the weights, which has to lie beside its index and be of the same kind."""
    if not PART.fullmatch(name) or Path(name).suffix != Path(file).suffix:
        raise CheckpointError(f"{model}: the index of its weights names {name!r}, which is no part")
    path = model.find(name)
    if path is None:
        raise model.missing(name)
    return path
