#!/usr/bin/env python
"""Trains and evaluates; Detectron2's command line plus the paths of one's own data set."""

from groupdetr_d2.engine.launch import launch
from groupdetr_d2.engine.main import build_parser, main

if __name__ == "__main__":
    launch(main, build_parser().parse_args())
