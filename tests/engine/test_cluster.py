"""torchrun, SLURM, and two processes on this machine as two machines."""

import os
import socket

import pytest

from groupdetr_d2.engine.cluster import Placement, find_placement, first_host
from groupdetr_d2.errors import UserError
from tests import warm
from tests.engine.test_engine import losses_of

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "1234567",
}


def test_torchrun_is_recognised():
    assert find_placement(TORCHRUN) == Placement("torchrun", 3, 4, 1, 2, "node1", 29500)


def test_slurm_is_recognised_and_its_port_is_the_same_for_all_tasks():
    place = find_placement(SLURM)
    assert place == Placement("SLURM", 3, 4, 1, 2, "gpu03", 20000 + 1234567 % 20000)
    own = find_placement({**SLURM, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "99"})
    assert (own.address, own.port) == ("10.0.0.7", 99)


@pytest.mark.parametrize(
    "environment", [{}, {"RANK": "0"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}]
)
def test_a_process_that_nobody_started_is_alone(environment):
    """In a script of sbatch without srun, too."""
    assert find_placement(environment) is None


def test_unevenly_spread_processes_are_an_error():
    with pytest.raises(UserError, match="SLURM has started 3 processes, 2 of them"):
        environment = {**SLURM, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
        find_placement(environment)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node1", "node1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a-1,b-2", "a-1"),
        ("rack[7,9]-gpu", "rack7-gpu"),
    ],
)
def test_first_host(node_list, host):
    assert first_host(node_list) == host


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(arguments, environment=None):
    environment = os.environ | (environment or {})
    return warm.start(warm.run_command, ["train", *arguments], environment=environment)


def finish(processes):
    for process in processes:
        output = "".join(process.communicate(timeout=300))
        assert process.returncode == 0, output[-3000:]


def arguments_for(out):
    """Images of one size: the backbone sees padding, which would differ between the two."""
    small = {
        "DATASETS.SHAPES.NUM_TRAIN": 16,
        "DATASETS.SHAPES.NUM_VAL": 4,
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.DEVICE": "cpu",
        "SOLVER.MAX_ITER": 3,
        "SOLVER.STEPS": "(2,)",
        "TEST.EVAL_PERIOD": 0,
        "SEED": 1,
        "OUTPUT_DIR": str(out),
    }
    config = ["--config-file", "configs/quick_start/group_conditional_detr_shapes.yaml"]
    return config, [str(x) for pair in small.items() for x in pair]


@pytest.mark.slow
def test_two_machines_give_the_losses_of_one_process(tmp_path):
    """Started by Detectron2's flags, and as torchrun would."""
    config, opts = arguments_for(tmp_path / "one")
    finish([start([*config, *opts])])
    expected = losses_of(tmp_path / "one")
    machines = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    _, opts = arguments_for(tmp_path / "two")
    opts += ["SOLVER.ACCUMULATE_STEPS", "2"]  # and each process's images in two parts
    finish([start([*config, *machines, "--machine-rank", rank, *opts]) for rank in ("0", "1")])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    _, opts = arguments_for(tmp_path / "torchrun")
    finish([start([*config, *opts], common | {"RANK": rank}) for rank in ("0", "1")])
    assert expected
    for name in ("two", "torchrun"):
        found = losses_of(tmp_path / name)
        assert list(found) == list(expected)
        for iteration, loss in expected.items():
            assert found[iteration] == pytest.approx(loss, rel=1e-4)
