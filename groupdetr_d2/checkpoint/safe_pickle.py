"""Reading of pickles without running code.

A pickle is a program: unpickling one from a stranger can do anything. Detectron2's backbones are
pickles of arrays in plain containers, and nothing else is let through here.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

# module: names that a pickle of numpy arrays in containers needs
ALLOWED = {
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},  # how Python 2's bytes are written
    "__builtin__": {"set", "frozenset", "bytearray", "complex"},
    "builtins": {"set", "frozenset", "bytearray", "complex"},
}


class UnsafePickleError(UserError):
    """A pickle asks for more than arrays and plain containers."""


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that refuses what ALLOWED does not list, before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """Finds a class that ALLOWED lists.

        Raises:
            UnsafePickleError: naming what the file asks for.
        """
        if name not in ALLOWED.get(module, ()):
            raise UnsafePickleError(f"it asks for {module}.{name}")
        if module.startswith(("numpy._core.", "numpy.core.")):  # one or the other, by its version
            core = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
            module = f"{core}.{module.rpartition('.')[2]}"
        return super().find_class(module, name)


def load_pickle(path: str | Path, *, trust: bool = False) -> Any:
    """Reads a pickle.

    Args:
        trust: whether the file may run code.

    Raises:
        UnsafePickleError: the file is not `trust`ed and holds more than arrays and containers.
    """
    with Path(path).open("rb") as file:
        if trust:
            return pickle.load(file, encoding="latin1")
        try:
            return ArrayUnpickler(file, encoding="latin1").load()
        except UnsafePickleError as error:
            raise UnsafePickleError(
                f"{path} is refused, and nothing of it was run: {error}, which could execute code. "
                "If you trust whoever made it, train_net.py reads it with --trust-checkpoint"
            ) from error
