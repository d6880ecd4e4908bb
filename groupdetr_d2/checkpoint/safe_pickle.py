"""Reading of pickles without running code.

A pickle is a program: unpickling one from a stranger can do anything. Detectron2's backbones are
pickles of arrays in plain containers, and nothing else is let through here.
"""

import io
import pickle
import pickletools
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


def checked_bytearray(*args: Any) -> bytearray:
    """Makes a bytearray of bytes or of text; of a number it would be memory without content."""
    if not args or not isinstance(args[0], (bytes, str)):
        raise UnsafePickleError(f"it asks for a bytearray of {args!r:.40}")
    return bytearray(*args)


def checked_encode(text: Any, encoding: Any = "latin1", *rest: Any) -> bytes:
    """Encodes text as Python 2's bytes are written."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str) or rest:
        raise UnsafePickleError(f"it asks for the codec {encoding!r:.40}")
    return text.encode("latin1")


def checked_reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """Makes the empty array that numpy's pickles begin with; its content follows."""
    if kind is not np.ndarray or shape != (0,):
        raise UnsafePickleError(f"it asks for an array of shape {shape!r:.40} without content")
    return np.ndarray((0,), code)


CHECKED = {"bytearray": checked_bytearray, "encode": checked_encode}
CHECKED["_reconstruct"] = checked_reconstruct


def check_opcodes(content: bytes) -> None:
    """Checks the numbers in a pickle that the unpickler would make room for at once.

    Raises:
        UnsafePickleError: one is larger than the file.
    """
    for opcode, argument, _ in pickletools.genops(content):
        is_place = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_place and argument > len(content):
            raise UnsafePickleError(f"it asks for the place {argument} in the memory of objects")
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise UnsafePickleError("it asks for an extension of the registry of this process")


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
        return CHECKED.get(name) or super().find_class(module, name)


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
        content = file.read()
        try:
            check_opcodes(content)
            return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        except UnsafePickleError as error:
            raise UnsafePickleError(
                f"{path} is refused, and nothing of it was run: {error}, which could execute code. "
                "If you trust whoever made it, train_net.py reads it with --trust-checkpoint"
            ) from error
