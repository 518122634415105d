"""What ends one process of a job ends all, soon and alike, also before there is a process group."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_gpt.checkpoint.folder import list_checkpoints
from pretrain.launch.run_folder import Marker
from pretrain.monitor.metrics import read_metrics
from tests.pretrain.ranks import train_on_ranks
from tests.pretrain.running import ROOT, assert_same_checkpoint, command, environment, losses
from tests.processes import is_alive

pytestmark = pytest.mark.slow

TWO_RANKS = {"devices": 2, "micro_batch_size": 2}
LAUNCHERS = ["own", "torchrun"]


class FaultyJob:
    """Two ranks of train_faulty.py and what they print."""

    def __init__(self, out_dir: Path, store: Path, launcher: str, fault: str, **flags: object) -> None:
        self._output = out_dir.with_suffix(".txt")
        arguments = command(out_dir, store, **TWO_RANKS | flags)
        arguments[1] = str(ROOT / "tests/pretrain/train_faulty.py")
        if launcher == "torchrun":
            arguments[:1] = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc_per_node=2",
                "--standalone",
            ]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment() | {"FAULT": fault},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = dict(
                    entry.split("=", 1)
                    for entry in (folder / "environ").read_text().split("\0")
                    if "=" in entry
                )
                ours = f"{self._output.with_suffix('')}" in (folder / "cmdline").read_text(errors="replace")
            except (OSError, ValueError):
                continue
            if ours and "RANK" in variables:
                found[int(variables["RANK"])] = int(folder.name)
            elif ours and self.process.pid == int(folder.name):
                found.setdefault(0, int(folder.name))
        return found

    def wait(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended:\n{self.output}") from None

    def __enter__(self) -> "FaultyJob":
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in {*self.ranks().values()} if self.process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def ended(pids: list[int]) -> bool:
    """Whether all end within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def marker(out_dir: Path, name: Marker) -> bool:
    return (out_dir / name).exists()


@pytest.mark.parametrize(
    ("launcher", "point"),
    [("own", "options"), ("own", "open_stages"), ("own", "train_step"), ("torchrun", "_resume")],
)
def test_bad_input_on_one_rank_ends_all_with_one_line(tmp_path, train_store_dir, launcher, point):
    """Rank 0 is then waiting, in the roll call or in a collective."""
    with FaultyJob(tmp_path / "run", train_store_dir, launcher, f"refuse:{point}:1") as job:
        code = job.wait()
        assert code == (2 if launcher == "own" else 1), job.output  # torchrun has a code of its own
        lines = [line for line in job.output.splitlines() if "bad input" in line and "error:" in line]
        assert len(lines) == 1, job.output
        assert "error: this rank has met bad input: fix it (rank 1 on " in lines[0]
        # torchrun, which runs as a module, ends with a traceback of its own.
        assert not re.search(r'Traceback .*\n  File "(?!<frozen runpy>)', job.output), job.output
        if launcher == "torchrun":
            assert job.output.count("exitcode  : 2 ") == 2, job.output


def test_a_crash_of_one_rank_ends_all_with_one_traceback(tmp_path, train_store_dir):
    """Rank 0 is then waiting in a collective."""
    with FaultyJob(tmp_path / "run", train_store_dir, "own", "raise:train_step:1") as job:
        assert job.wait() == 1, job.output
        assert job.output.count("Traceback") == 1, job.output
        assert "RuntimeError: a bug\nerror: rank 1 on " in job.output, job.output


def test_bad_input_on_the_first_rank_ends_all(tmp_path, train_store_dir):
    with FaultyJob(tmp_path / "run", train_store_dir, "own", "refuse:open_stages:0") as job:
        job.wait_for("fault before")
        other = job.ranks()[1]
        assert job.wait() == 2
        assert "error: this rank has met bad input: fix it\n" in job.output
        assert ended([other])


@pytest.mark.parametrize(("launcher", "victim"), [("own", 0), ("own", 1), ("torchrun", 0)])
def test_a_rank_killed_before_the_process_group_exists_ends_all(tmp_path, train_store_dir, launcher, victim):
    with FaultyJob(tmp_path / "run", train_store_dir, launcher, "wait:open_stages:1") as job:
        job.wait_for("fault before")
        pids = job.ranks()
        assert sorted(pids) == [0, 1]
        os.kill(pids[victim], signal.SIGKILL)
        assert ended([*pids.values()]), job.output
        assert job.wait() not in (0, 2)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_end_with_their_launcher(tmp_path, train_store_dir, launcher):
    with FaultyJob(tmp_path / "run", train_store_dir, launcher, "wait:_build_model:1") as job:
        job.wait_for("fault before")
        pids = [*job.ranks().values()]
        job.process.kill()
        assert ended(pids), job.output


@pytest.mark.parametrize(
    ("number", "point", "has_marker"),
    [
        (signal.SIGTERM, "open_stages", False),  # the run's folder is not ours yet
        (signal.SIGTERM, "preflight", True),
        (signal.SIGUSR1, "_build_model", True),
        (signal.SIGINT, "train_step", True),
    ],
)
def test_a_stop_before_the_first_step_ends_all_at_once(tmp_path, train_store_dir, point, has_marker, number):
    """The rank that is asked is not the one that is busy."""
    with FaultyJob(tmp_path / "run", train_store_dir, "own", f"wait:{point}:1") as job:
        job.wait_for("fault before")
        os.kill(job.ranks()[0], number)
        assert job.wait(60) == 0, job.output
        assert f"({signal.Signals(number).name}, " in job.output
        assert marker(tmp_path / "run", "requeue") == has_marker


def test_the_time_limit_is_heard_before_the_first_step(tmp_path, train_store_dir):
    fault = "wait:_build_model:0"
    for seconds in (25, 100):  # a busy machine may not come that far in time
        run, limit = tmp_path / str(seconds), f"00:00:{seconds}"
        with FaultyJob(run, train_store_dir, "own", fault, devices=1, max_time=limit) as job:
            assert job.wait() == 0
        if "fault before" in job.output:
            break
    assert "(max_time, verifying and loading a checkpoint)" in job.output


@pytest.mark.parametrize("devices", [1, 2])
def test_a_stop_is_heard_between_micro_batches_and_during_validation(
    tmp_path, train_store_dir, val_store_dir, devices
):
    """All ranks give up the step, or the validation, at the same place, and resume from the step before."""
    flags = {"devices": devices, "global_batch_size": 32, "max_steps": 6, "log_step_interval": 1}
    flags |= {"val_data_dir": val_store_dir, "eval_step_interval": 5, "eval_iters": 0}
    run, straight = tmp_path / "run", tmp_path / "straight"
    with FaultyJob(run, train_store_dir, "own", "slow:train:3", **flags) as job:
        job.wait_for("slow pass")
        os.kill(job.ranks()[devices - 1], signal.SIGTERM)
        assert job.wait() == 0, job.output
        assert job.output.count("slow pass") <= 5 * devices, "of 16 a step"
    assert "stopped at step 3 " in job.output
    assert marker(run, "requeue")
    with FaultyJob(run, train_store_dir, "own", "slow:eval:5", resume="auto", **flags) as job:
        job.wait_for("slow pass")
        os.kill(job.ranks()[0], signal.SIGUSR1)
        assert job.wait() == 0, job.output
        assert job.output.count("slow pass") <= 5 * devices, "of dozens"
    assert [step for step, _ in list_checkpoints(run)] == [3, 5]
    assert read_metrics(run / "metrics.csv")[-1]["val_loss"] is None
    flags |= {"val_data_dir": [str(val_store_dir)]}
    for folder in (run, straight):
        train_on_ranks(devices, folder, train_store_dir, resume="auto", **flags)
    assert losses(run) == losses(straight)
    assert_same_checkpoint(run, straight, 6)
