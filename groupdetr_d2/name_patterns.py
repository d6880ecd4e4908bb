"""Names of parameters chosen by patterns such as ``backbone.*``."""

import fnmatch
from collections.abc import Iterable

from .errors import UserError


def matching_names(names: Iterable[str], pattern: str, key: str) -> list[str]:
    """Finds the names that a pattern of the configuration key `key` matches.

    Raises:
        UserError: there is none; what the names begin with is given.
    """
    names = list(names)
    found = fnmatch.filter(names, pattern)
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) for name in names})
        raise UserError(
            f"{key} has {pattern!r}, which matches none of the names; they begin with "
            f"{', '.join(parts)}: add .* for all of a part"
        )
    return found
