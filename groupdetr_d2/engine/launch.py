"""One process per device: Detectron2's launcher, with settings for a CPU's cores and allocator."""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
from detectron2.engine import launch as detectron2_launch

from ..errors import UserError
from .cluster import find_placement, join
from .interruption import signals_passed_on
from .memory import keep_freed_memory
from .reporting import report_errors


def launch(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Runs ``main(args)`` in every process that --num-gpus and --num-machines ask for.

    Under torchrun and `srun` the processes are there already, and this is one of them.

    Raises:
        UserError: more processes a machine than it has GPUs.
    """
    with report_errors():
        place = find_placement(os.environ)
        if place is not None:
            args.num_gpus = place.local_world_size
            join(place)
    if place is not None:
        _prepared(main, args)
        torch.distributed.destroy_process_group()
        return
    available = torch.cuda.device_count()
    if available and args.num_gpus > available:
        with report_errors():
            raise UserError(
                f"--num-gpus {args.num_gpus}, but this machine has {available} GPUs. Those of "
                "several machines: --num-gpus is the number of each, and --num-machines, "
                "--machine-rank and --dist-url join them (docs/cluster.md)"
            )
    if args.num_gpus > 1 and not available:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.num_gpus))
    several = args.num_gpus * args.num_machines > 1
    try:
        with report_errors(), signals_passed_on() if several else contextlib.nullcontext():
            detectron2_launch(
                _prepared,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
    except torch.multiprocessing.ProcessExitedException as end:
        sys.exit(max(1, end.exit_code))  # the process has printed the error


def _prepared(main: Callable[[Namespace], object], args: Namespace) -> None:
    if not torch.cuda.is_available():
        keep_freed_memory()
        if args.num_gpus > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_gpus))
    with report_errors():
        main(args)
