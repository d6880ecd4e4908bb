"""The tables that nuscenes-devkit reads and an index does not need: logs, maps, visibilities."""

from typing import ClassVar

from .tables import UNPACK, NuScenesError, Record, Tables

UNPACK_MAPS = f"{UNPACK}; it has the pictures of maps/, too"


class Log(Record):
    """A drive from which scenes were taken."""

    TABLE: ClassVar[str] = "log"


class Map(Record):
    """A map as a picture, with the drives that it covers."""

    TABLE: ClassVar[str] = "map"
    log_tokens: list[str]
    filename: str


class Visibility(Record):
    """A degree to which objects are seen."""

    TABLE: ClassVar[str] = "visibility"


def problems_of_evaluation(tables: Tables) -> list[str]:
    """Lists why nuscenes-devkit would refuse the tables, although an index can be made of them."""
    problems: list[str] = []
    log, maps, _ = (_records(tables, kind, problems) for kind in (Log, Map, Visibility))
    if maps is not None and not maps:
        problems.append(f"{tables.path('map')} has no map")
    for record in maps or []:
        picture = tables.root / record.filename
        if not picture.is_file():
            problems.append(f"{picture} is missing, the picture of map {record.token}")
    if maps and log is not None:
        covered = {token for record in maps for token in record.log_tokens}
        bare = (record.token for record in log if record.token not in covered)
        problems += [f"log {token} has no map in {tables.path('map')}" for token in bare]
    return problems


def check_evaluation(tables: Tables) -> None:
    """Checks that nuscenes-devkit takes the tables, as far as logs and maps go.

    Raises:
        NuScenesError: naming the first problem and the remedy.
    """
    problems = problems_of_evaluation(tables)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise NuScenesError(
            f"nuscenes-devkit cannot evaluate with {tables.folder}: {problems[0]}{more}. "
            f"{UNPACK_MAPS}"
        )


def _records(tables: Tables, kind: type[Record], problems: list[str]) -> list | None:
    path = tables.path(kind.TABLE)
    try:
        return list(tables.read(kind, lambda text: problems.append(f"{path}, {text}")))
    except NuScenesError as error:
        problems.append(str(error).removesuffix(f". {UNPACK}"))
        return None
