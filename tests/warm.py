"""Processes that start at once: forks of one that has imported PyTorch and Detectron2 already.

A fresh interpreter takes five seconds of CPU time to import them, and a training in two processes
takes three interpreters. What is started here is a process of its own all the same, with its own
session, environment and output, and can be signalled and killed.
"""

import functools
import multiprocessing
import os
import sys
import tempfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from tests import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm_imports"])


class Running:
    """A process started by :func:`start`, with what tests use of `subprocess.Popen`."""

    def __init__(self, process, output):
        self.process, self.output, self.pid = process, output, process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def communicate(self, timeout=300):
        """Waits for the end; returns stdout and stderr."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        return tuple(Path(self.output, name).read_text() for name in ("stdout", "stderr"))


def start(function, *args, environment=None):
    """Calls a function of a module in a process with the repository as its folder."""
    output = tempfile.mkdtemp()
    environment = dict(os.environ if environment is None else environment)
    process = CONTEXT.Process(target=_call, args=(function, args, environment, output))
    process.start()
    return Running(process, output)


def _call(function, args, environment, output):
    import torch

    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    multiprocessing.set_start_method("fork", force=True)  # of loading workers, as it is for users
    torch.multiprocessing.start_processes = functools.partial(
        _fork, torch.multiprocessing.start_processes
    )
    function(*args)


def _fork(start_processes, function, args, **options):
    """Forks the processes of one training; as it stands they are spawned, which has to pickle."""
    ForkingPickler.dumps((function, args))
    return start_processes(function, args, **{**options, "start_method": "fork"})


def run_command(words):
    """Runs a command of the package as its console script does."""
    from groupdetr_d2.commands import run

    sys.argv = ["groupdetr-d2", *words]
    sys.exit(run(words))
