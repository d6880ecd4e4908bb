"""`python -m groupdetr_d2 COMMAND`, and the console script groupdetr-d2."""

import sys

from .commands import run

if __name__ == "__main__":
    sys.exit(run())
