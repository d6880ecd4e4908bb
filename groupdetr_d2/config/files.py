"""The places of the yamls: beside the package in a checkout, inside it once installed."""

import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


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


def nearest_configs(name: str) -> list[str]:
    """The names of yamls that look most like this one."""
    by_file = {path.name: str(path) for path in known_configs()}
    near = difflib.get_close_matches(Path(name).name, by_file, n=3, cutoff=0)
    return [by_file[x] for x in near]
