"""Launch mistakes, and ranks, folders and networks that are not what they should be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.launch.preflight import launch_mistake
from pretrain.launch.processes import expand_hosts
from pretrain.launch.roll_call import EXIT_UNSOUND
from scripts.faults.ports import free_ports
from tests.pretrain import preflight_rank
from tests.pretrain.ranks import start_ranks

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "llammlein",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in SRUN.items() if key != name}


@pytest.mark.parametrize(
    ("variables", "visible_gpus"),
    [
        ({}, 0),
        (SRUN, 0),
        (SRUN, 4),
        (TORCHRUN, 4),
        (SRUN | TORCHRUN, 4),  # torchrun inside a job
    ],
)
def test_right_launches_pass(variables, visible_gpus):
    assert launch_mistake(4, 2, variables, visible_gpus) is None


@pytest.mark.parametrize(
    ("variables", "visible_gpus", "fix"),
    [
        (without("SLURM_STEP_ID"), 0, "write `srun python ...`"),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, 0, "give sbatch or srun another --job-name"),
        (without("SLURM_NTASKS_PER_NODE"), 0, "give --nodes and --ntasks-per-node"),
        (SRUN | {"SLURM_NTASKS_PER_NODE": "1"}, 0, "give --nodes=2 --ntasks-per-node=4"),
        (SRUN | {"SLURM_NNODES": "1"}, 0, "give --nodes=2 --ntasks-per-node=4"),
        (SRUN, 1, "give SLURM --gpus-per-node=4"),  # as with --gpus-per-task
        (TORCHRUN | {"WORLD_SIZE": "4"}, 0, "make them agree"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, 0, "make them agree"),
    ],
)
def test_launch_mistakes_say_the_fix(variables, visible_gpus, fix):
    mistake = launch_mistake(4, 2, variables, visible_gpus)
    assert fix in mistake
    assert "\n" not in mistake


def test_a_single_process_in_an_allocation_needs_no_srun():
    assert launch_mistake(1, 1, {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}, 1) is None


def test_hosts_are_expanded():
    assert expand_hosts("gpu[08-10,12],login,a[1]-ib") == [
        *("gpu08", "gpu09", "gpu10", "gpu12", "login", "a1-ib"),
    ]


@given(st.lists(st.from_regex(r"[a-z]{1,4}[0-9]{0,3}(-[a-z]+)?", fullmatch=True), min_size=1))
def test_plain_hosts_stay(hosts):
    assert expand_hosts(",".join(hosts)) == hosts


def run_ranks(folder: Path, fault: str) -> tuple[list[int | None], str]:
    """Exit codes of the ranks and what they printed."""
    (port,) = free_ports(1)
    ranks = start_ranks(preflight_rank.run, preflight_rank.N_RANKS, port, folder, fault)
    for rank in ranks:
        if fault == "frozen" and rank is ranks[3]:
            rank.kill()
        rank.join(120)
    output = "".join((folder / f"{number}.txt").read_text() for number in range(len(ranks)))
    return [rank.exitcode for rank in ranks], output


@pytest.mark.slow
def test_a_sound_job_is_described(tmp_path):
    codes, output = run_ranks(tmp_path, "none")
    assert codes == [0] * 4, output
    assert "rank 3 on node1: CPU" in output
    assert "GB/s over all 4 ranks" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not connected", "no process group after 9 s, it hangs on every node"),
        ("frozen", "no answer from rank 3"),
        ("hangs", "all-reduce inside node1 fails: it does not end within 3 s"),
        ("wrong sum", "all-reduce inside node1 fails: the sum is wrong"),
        ("no way between nodes", "all-reduce between nodes fails, most with node0, node1"),
        ("another folder", "is another folder on node1 than on node0"),  # a mount is missing: not tried again
    ],
)
def test_faults_are_named(tmp_path, fault, message):
    codes, output = run_ranks(tmp_path, fault)
    assert message in output
    expected = EXIT_BAD_INPUT if fault == "another folder" else EXIT_UNSOUND
    assert codes[:3] == [expected] * 3, output
