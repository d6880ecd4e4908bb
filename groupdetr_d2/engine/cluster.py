"""Processes that torchrun or SLURM has started: their number, and the address to join."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..errors import UserError

FIRST_PORT, PORTS = 20000, 20000  # SLURM names no port: one is derived from the job's number


@dataclass(frozen=True)
class Placement:
    """The place of one process among those of a training."""

    starter: str  # "torchrun" or "SLURM"
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int  # processes on this machine; the same on all
    address: str  # of the first process's machine
    port: int


def find_placement(environment: Mapping[str, str]) -> Placement | None:
    """Reads the placement that torchrun or `srun` gives; None if neither started this process.

    Raises:
        UserError: processes are not spread evenly over the machines.
    """
    place = _of_torchrun(environment) or _of_slurm(environment)
    if place is not None and place.world_size % place.local_world_size:
        raise UserError(
            f"{place.starter} has started {place.world_size} processes, {place.local_world_size} "
            "of them on this machine: every machine needs as many as the others"
        )
    return place


def _of_torchrun(environment: Mapping[str, str]) -> Placement | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in environment for name in names):
        return None
    rank, world, local_rank, local_world, address, port = (environment[name] for name in names)
    return Placement(
        starter="torchrun",
        rank=int(rank),
        world_size=int(world),
        local_rank=int(local_rank),
        local_world_size=int(local_world),
        address=address,
        port=int(port),
    )


def _of_slurm(environment: Mapping[str, str]) -> Placement | None:
    """Reads SLURM's placement; a script of sbatch itself is one process of a job of any size."""
    number = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if number < 2:
        return None
    per_node = re.match(r"\d+", environment["SLURM_STEP_TASKS_PER_NODE"])  # "2(x3)", or "2,1"
    job = int(environment["SLURM_JOB_ID"])
    return Placement(
        starter="SLURM",
        rank=int(environment["SLURM_PROCID"]),
        world_size=number,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world_size=int(per_node[0]),
        address=environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT") or FIRST_PORT + job % PORTS),
    )


def first_host(node_list: str) -> str:
    """Returns the first name of SLURM's short form: ``gpu03`` of ``gpu[03-05,9],cpu1``."""
    match = re.match(r"([^,\[]+)(?:\[([^-,\]]+)[^\]]*\])?([^,\[]*)", node_list)
    return "".join(part or "" for part in match.groups())


def join(place: Placement) -> None:
    """Joins the processes of the training; returns when all are there."""
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }
    has_gpu = torch.cuda.is_available()
    if has_gpu and place.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{place.starter} has started {place.local_world_size} processes on this machine with "
            f"{torch.cuda.device_count()} GPUs: start one a GPU"
        )
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group("nccl" if has_gpu else "gloo", init_method="env://")
    comm.create_local_process_group(place.local_world_size)
    comm.synchronize()
