"""The places of the yamls: beside the package in a checkout, inside it once installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def config_folder() -> Path:
    """`configs/` of this checkout or installation."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(name: str) -> str:
    """A path as it is; else the same path under `configs/` of the installation.

    ``configs/DINO/dino_4scale_R_50_12ep.yaml`` so works in any folder.
    """
    inside = config_folder() / name.removeprefix("configs/")
    return str(inside) if name and not Path(name).exists() and inside.is_file() else name
