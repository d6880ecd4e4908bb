#!/usr/bin/env python
"""Trains and evaluates; Detectron2's command line plus the paths of one's own data set."""

import sys

from groupdetr_d2.engine.launch import launch
from groupdetr_d2.engine.main import build_parser, main, report_errors

if __name__ == "__main__":
    args = build_parser().parse_args()
    with report_errors():
        sys.exit(launch(main, args))
