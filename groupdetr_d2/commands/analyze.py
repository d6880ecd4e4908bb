"""The paper's tables and figures from checkpoints, runs and configurations: analyze NAME --help.

Every analysis writes a picture, a table as CSV and a line of text into --out.
"""

import argparse
import importlib
import logging
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..engine.launch import report_errors

# name: module of analysis/, help
ANALYSES = {
    "groups": ("group_ap", "AP of every query group alone, and of all of them fused (Figure 4)"),
    "stability": ("stability", "how much the matching changes between checkpoints (Figure 5)"),
    "queries": ("query_figure", "where the groups' queries for the same object are (Figure 3)"),
    "convergence": ("convergence", "AP over epochs of several runs (Figure 1)"),
    "memory": ("memory", "training memory with attention maps and without (Figure 7)"),
    "time": ("training_time", "hours of an epoch and their ratio (Table 2)"),
    "sweep": ("sweep", "trains a list of settings, resumably, and plots AP (Figures 9, 10)"),
    "attention": ("attention_figure", "where the decoder's queries look on an image"),
    "duplicates": ("duplicates", "boxes per object, and what NMS would add (Table 7)"),
}


def main(argv: list[str]) -> int:
    """Runs one analysis."""
    parser = argparse.ArgumentParser(prog="groupdetr_d2 analyze", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    wanted = argv[0] if argv and argv[0] in ANALYSES else None
    modules = {}
    for name, (module, text) in ANALYSES.items():
        subparser = names.add_parser(name, help=text, description=text)
        if name != wanted:
            continue
        modules[name] = importlib.import_module(f"groupdetr_d2.analysis.{module}")
        modules[name].add_arguments(subparser)
        subparser.add_argument("--out", default=f"output/analysis/{name}", help="folder to write")
        subparser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    setup_logger(name="groupdetr_d2")
    logging.getLogger("groupdetr_d2").setLevel(logging.INFO)
    with report_errors():
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        text = modules[args.name].run(args)
        (out / f"{args.name}.txt").write_text(text + "\n")
        sys.stdout.write(f"{text}\n{out}: {', '.join(sorted(p.name for p in out.glob('*.*')))}\n")
    return 0
