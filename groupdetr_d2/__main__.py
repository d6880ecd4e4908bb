"""`python -m groupdetr_d2 COMMAND`: lists and runs the modules of `commands/`."""

import importlib
import pkgutil
import sys

from . import commands


def main(argv: list[str]) -> int:
    """Runs one command; without one, lists them."""
    names = sorted(m.name for m in pkgutil.iter_modules(commands.__path__))
    if argv and argv[0].replace("-", "_") in names:
        module = importlib.import_module(f"{commands.__name__}.{argv[0].replace('-', '_')}")
        return module.main(argv[1:])
    sys.stdout.write("usage: python -m groupdetr_d2 COMMAND [--help]\n\ncommands:\n")
    for name in names:
        module = importlib.import_module(f"{commands.__name__}.{name}")
        sys.stdout.write(f"  {name.replace('_', '-'):<12}{module.__doc__.splitlines()[0]}\n")
    return 0 if not argv or argv[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
