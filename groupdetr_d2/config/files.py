"""The places of the yamls: beside the package in a checkout, inside it once installed."""

import difflib
import os
import re
from pathlib import Path

from ..errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
# names that are proposed: how like they are, how much less than the best, and how many
LEAST_LIKENESS, MARGIN, SHOWN = 0.6, 0.15, 3


class ConfigError(UserError):
    """The configuration cannot be used; the message names the key and the remedy."""


def config_folder() -> Path:
    """`configs/` of this checkout or installation."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> str:
    """A path as it is; else a yaml under `configs/` of the installation, in any folder.

    ``configs/DINO/dino_4scale_R_50_12ep.yaml``, the same without ``configs/``, and its file name
    alone, with or without ``.yaml``, are all found.
    """
    if not name or Path(name).exists():
        return name
    wanted = Path(name.removeprefix("configs/"))
    candidates = (wanted, wanted.with_name(f"{wanted.name}.yaml"))
    for own in known_configs():
        if own in candidates or Path(own.name) in candidates:
            return str(config_folder() / own)
    return name


def train_command() -> str:
    """The command that trains in this folder: the script of a checkout, or the package's own."""
    return "train_net.py" if Path("train_net.py").is_file() else "-m groupdetr_d2 train"


def known_configs() -> list[Path]:
    """The yamls of the installation, relative to `configs/`."""
    return sorted(p.relative_to(config_folder()) for p in config_folder().rglob("*.yaml"))


def config_that_fills(folder: str) -> str:
    """The yaml whose OUTPUT_DIR a folder is, "" if there is none."""
    line = re.compile(rf"^OUTPUT_DIR: *[\"']?{re.escape(os.path.normpath(folder))}[\"']? *$", re.M)
    for path in known_configs():
        if line.search((config_folder() / path).read_text()):
            return f"configs/{path.as_posix()}"
    return ""


def nearest_configs(name: str) -> list[str]:
    """The yamls whose names look most like this one, as paths that begin with `configs/`."""

    def likeness(path: Path) -> float:
        if wanted.stem.lower() in path.stem.lower():
            return 1.0
        pairs = ((path.stem, wanted.stem), (path.with_suffix("").as_posix(), below))
        words = ((one.lower(), other.lower()) for one, other in pairs)
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in words)

    wanted = Path(name)
    below = wanted.with_suffix("").as_posix().removeprefix("configs/")
    values = {path: likeness(path) for path in known_configs()}
    least = max(LEAST_LIKENESS, max(values.values(), default=0) - MARGIN)
    near = sorted((x for x in values if values[x] >= least), key=lambda x: -values[x])
    return [f"configs/{path.as_posix()}" for path in near[:SHOWN]]


def check_config_file(config_file: str) -> None:
    """Checks that a configuration file exists, and is a yaml.

    Raises:
        ConfigError: naming the file, and the nearest of `configs/`.
    """
    if not config_file:
        return
    if config_file.endswith(".py"):
        raise ConfigError(
            f"{config_file} is one of Detectron2's LazyConfigs, which are Python code: "
            "groupdetr_d2 reads yaml alone; `configs/` of the package holds one for each model"
        )
    if not os.path.isfile(config_file):
        near = nearest_configs(config_file)
        asked = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"the configuration file {config_file} does not exist; {asked}"
            "`python -m groupdetr_d2 models` lists all"
        )
