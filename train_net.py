#!/usr/bin/env python
"""Trains and evaluates; Detectron2's command line plus the paths of one's own data set."""

import sys

from groupdetr_d2.commands import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
