"""train_fabric.sh with the real trainer on a real SLURM: whatever stops it, the weights come out the same."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.running import MAX_STEPS, ROOT, TrainingJob, train
from tests.pretrain.running import assert_same_checkpoint, losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(slurm, tmp_path_factory, train_store_dir) -> TrainingJob:
    """A run that nothing disturbs."""
    job = train(slurm, tmp_path_factory.mktemp("straight") / "run", train_store_dir).completed()
    assert job.starts == ["nothing"]
    return job


def assert_same_run(job: TrainingJob, straight: TrainingJob) -> None:
    """The run was started more than once, and its weights and losses are bitwise those of the other."""
    assert len(job.starts) > 1, job.output
    assert_same_checkpoint(job.out_dir, straight.out_dir, MAX_STEPS)
    assert losses(job.out_dir) == losses(straight.out_dir)


def test_a_signal_saves_and_requeues(slurm, straight, tmp_path, train_store_dir):
    job = train(slurm, tmp_path / "run", train_store_dir)
    job.wait_for_step(10)
    slurm.run("scancel", "--signal=USR1", job.id)
    job.completed()
    assert "stopped as asked; requeueing" in job.output
    assert len(job.starts) == 2
    assert job.starts[1].startswith("iter-")
    assert_same_run(job, straight)


def test_preemption_saves_and_requeues(slurm, tmp_path, train_store_dir):
    """With two tasks on a node, as on machines with several GPUs."""
    straight = train(slurm, tmp_path / "straight", train_store_dir, tasks_per_node=2).completed()
    job = train(slurm, tmp_path / "run", train_store_dir, tasks_per_node=2)
    job.wait_for_step(10)
    other = slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.wait(other)
    job.completed()
    assert "stopped as asked" in job.output
    assert_same_run(job, straight)


def test_the_time_limit_saves_and_requeues(slurm, straight, tmp_path, train_store_dir):
    """SLURM looks at time limits every 30 s: the tasks are held still until its signal has come."""
    job = train(slurm, tmp_path / "run", train_store_dir, "--signal=USR1@60")
    job.wait_for_step(10)
    job.signal_tasks(signal.SIGSTOP)
    job.set_time_limit_from_now(minutes=1)
    job.wait_until(lambda: all(is_pending(pid, signal.SIGUSR1) for pid in job.tasks()))
    job.signal_tasks(signal.SIGCONT)
    job.wait_until(lambda: "requeueing" in job.output)
    job.set_time_limit_from_now(minutes=10)
    job.completed()
    assert "stopped as asked" in job.output
    assert_same_run(job, straight)


def test_a_killed_task_requeues(slurm, straight, tmp_path, train_store_dir):
    job = train(slurm, tmp_path / "run", train_store_dir)
    job.wait_for_step(60)
    os.kill(job.tasks()[1], signal.SIGKILL)
    job.completed()
    assert job.starts == ["nothing", "iter-00000050-ckpt.pth"]
    assert_same_run(job, straight)


def test_restarts_without_progress_end(slurm, tmp_path, train_store_dir):
    """No step is ever finite, so no checkpoint is ever written."""
    job = train(
        slurm,
        tmp_path / "run",
        train_store_dir,
        site_settings={"MAX_STALLED_RESTARTS": 1},
        learning_rate=1e30,
        max_skipped_steps=1,
    )
    assert slurm.wait(job.id)["JobState"] == "FAILED", job.output
    assert job.starts == ["nothing", "nothing"]
    assert "giving up: 1 restarts brought no checkpoint after the beginning" in job.output


def test_bad_input_is_not_requeued(slurm, tmp_path, train_store_dir):
    job = train(slurm, tmp_path / "run", train_store_dir, global_batch_size=7)
    assert slurm.wait(job.id)["ExitCode"] == "2:0", job.output
    assert job.starts == ["nothing"]
    assert "--global_batch_size 7 is not divisible by 2" in job.output


def python_that(folder: Path, command: str) -> Path:
    """A virtual environment whose Python runs the training by another command."""
    python = folder / "bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    new = python.with_suffix(".new")
    new.write_text(f'#!/bin/bash\nshift\n{command} "$@"\n')
    new.chmod(0o755)
    new.replace(python)
    return folder


def python_with(folder: Path, fault: str) -> Path:
    """As tests/pretrain/train_faulty.py says."""
    return python_that(folder, f"FAULT={fault} exec {sys.executable} {ROOT}/tests/pretrain/train_faulty.py")


@pytest.mark.parametrize(("point", "tasks_per_node"), [("options", 1), ("open_stages", 1), ("train_step", 2)])
def test_bad_input_on_one_node_is_not_requeued(slurm, tmp_path, train_store_dir, point, tasks_per_node):
    """The last rank alone, on the second node, does not find what it needs."""
    last = 2 * tasks_per_node - 1
    site_settings = {"VENV": python_with(tmp_path / "venv", f"refuse:{point}:{last}")}
    job = train(
        slurm,
        tmp_path / "run",
        train_store_dir,
        tasks_per_node=tasks_per_node,
        site_settings=site_settings,
    )
    assert slurm.wait(job.id, 600)["ExitCode"] == "2:0", job.output
    assert job.starts == ["nothing"]
    assert job.output.count(f"error: this rank has met bad input: fix it (rank {last} on ") == 1
    assert "bad input, named above" in job.output


def test_a_task_killed_before_the_process_group_exists_ends_all(slurm, tmp_path, train_store_dir):
    venv = python_with(tmp_path / "venv", "wait:open_stages:1")
    job = train(slurm, tmp_path / "run", train_store_dir, site_settings={"VENV": venv})
    job.wait_until(lambda: "fault before open_stages" in job.output)
    tasks = job.tasks()
    os.kill(tasks[0], signal.SIGKILL)
    python_that(venv, f"exec {sys.executable} {ROOT}/pretrain/tinyllama_fabric.py")  # at the next start
    job.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in tasks), seconds=60)
    job.completed(600)
    assert job.starts == ["nothing", "nothing"]


def test_a_stop_before_the_first_step_requeues(slurm, straight, tmp_path, train_store_dir):
    venv = python_with(tmp_path / "venv", "wait:open_stages:1")
    job = train(slurm, tmp_path / "run", train_store_dir, site_settings={"VENV": venv})
    job.wait_until(lambda: "fault before open_stages" in job.output)
    python_that(venv, f"exec {sys.executable} {ROOT}/pretrain/tinyllama_fabric.py")  # at the next start
    slurm.run("scancel", "--signal=USR1", job.id)
    job.wait_until(lambda: "stopped as asked; requeueing" in job.output, seconds=60)
    job.completed(600)
    assert job.starts == ["nothing", "nothing"]
    assert_same_run(job, straight)


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, tmp_path, train_store_dir):
    job = train(slurm, tmp_path / "run", train_store_dir)
    job.wait_for_step(10)
    slurm.run("scancel", job.id)
    assert slurm.wait(job.id)["JobState"] == "CANCELLED"
    job.wait_until(lambda: "SLURM is ending the job (scancel" in job.output)
    assert (job.out_dir / "requeue").exists()


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a stopped process has a signal waiting."""
    with open(f"/proc/{pid}/status") as file:
        masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)
