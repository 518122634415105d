"""What goes wrong in the middle of training, on real processes."""

import os
import signal
import subprocess
import time

import pytest

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.files import lock
from pretrain.launch.agreement import EXIT_HANG, SILENCE_LIMIT
from pretrain.monitor.metrics import read_metrics
from tests.pretrain.running import (
    ROOT,
    WANDB_STAND_IN,
    command,
    environment,
    losses,
    ranks,
    start,
    steps_logged,
    train,
    wait_until,
)

TWO_RANKS = {"devices": 2, "micro_batch_size": 2, "log_step_interval": 1}


def train_poisoned(out_dir, store, **flags):
    arguments = command(out_dir, store, **TWO_RANKS | flags)
    arguments[1] = str(ROOT / "tests/pretrain/train_poisoned.py")
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment())


@pytest.mark.slow
def test_nan_on_one_rank_is_skipped_by_all_and_named(tmp_path, train_store_dir):
    result = train_poisoned(tmp_path, train_store_dir, max_steps=12)
    assert result.returncode == 0, result.stderr
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows if row["skipped"]] == [7, 8]
    assert all(f"rank {rank}: step 7 skipped" in result.stdout for rank in (0, 1))
    assert "page/" in result.stdout  # ids of the documents responsible
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_too_many_skipped_steps_stop_the_run_after_the_save_under_way(tmp_path, train_store_dir, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB_STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = {"max_skipped_steps": 3, "last_poisoned_step": 1000, "wandb_project": "test"}
    flags |= {"save_step_interval": 8, "slow_save_seconds": 5}
    result = train_poisoned(tmp_path, train_store_dir, **flags)
    assert result.returncode == 1
    assert "4 steps in a row" in result.stderr
    assert "wandb ends, done is there: False" in result.stdout
    assert steps_logged(tmp_path) == 10
    assert [step for step, _ in list_checkpoints(tmp_path)] == [8]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_is_named_and_the_others_leave(tmp_path, train_store_dir, victim):
    process = start(tmp_path, train_store_dir, max_steps=100_000, **TWO_RANKS)
    wait_until(lambda: steps_logged(tmp_path) >= 5, process)
    pids = ranks(process)
    os.kill(pids[victim], signal.SIGSTOP)
    try:
        deadline = time.monotonic() + SILENCE_LIMIT + 30
        report = tmp_path / f"hang-rank{1 - victim:05d}.txt"
        while not report.exists() or not report.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert f"rank {victim} " in report.read_text()
        if victim == 1:
            assert process.wait(timeout=30) == EXIT_HANG
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_dead_rank_ends_the_others_within_a_minute(tmp_path, train_store_dir):
    process = start(tmp_path, train_store_dir, max_steps=100_000, **TWO_RANKS)
    wait_until(lambda: steps_logged(tmp_path) >= 5, process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    try:
        assert process.wait(timeout=60) == 1
        output = (tmp_path / "output.txt").read_text()
        assert output.count("error: ") == output.count("error: rank 1 has ended with code -9") == 1, output
        assert "Traceback" not in output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_no_step_within_the_limit_leaves_with_every_stack(tmp_path, train_store_dir):
    flags = {"watchdog_minutes": 0.2, "hanging_step": 7, "devices": 1}
    result = train_poisoned(tmp_path, train_store_dir, **flags)
    assert result.returncode == EXIT_HANG
    report = (tmp_path / "hang-rank00000.txt").read_text()
    assert "after step 6" in report
    assert "in train_step" in report


@pytest.mark.slow
def test_a_clock_set_back_an_hour_changes_nothing(tmp_path, train_store_dir):
    flags = {"devices": 1, "poisoned_rank": -1, "save_step_interval": 10, "keep_last": 2}
    assert train_poisoned(tmp_path / "back", train_store_dir, clock_back_step=15, **flags).returncode == 0
    assert train_poisoned(tmp_path / "straight", train_store_dir, **flags).returncode == 0
    assert losses(tmp_path / "back") == losses(tmp_path / "straight")
    assert [step for step, _ in list_checkpoints(tmp_path / "back")] == [30, 40]
    speeds = [row["step_seconds"] for row in read_metrics(tmp_path / "back/metrics.csv")]
    assert all(0 < seconds < 60 for seconds in speeds if seconds is not None)


@pytest.mark.slow
def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path, train_store_dir):
    (tmp_path / "file").write_text("in the way")
    result = train(tmp_path / "file", train_store_dir)
    assert result.returncode == 2
    assert "--out_dir" in result.stderr
    assert list_checkpoints(tmp_path / "file") == []


@pytest.mark.slow
def test_two_jobs_do_not_train_in_one_folder(tmp_path, train_store_dir):
    held = lock(tmp_path / "lock")
    result = train(tmp_path, train_store_dir)
    assert result.returncode == 2
    assert "another job trains there" in result.stderr
    assert not (tmp_path / "config.yaml").exists()
    held.close()
    assert train(tmp_path, train_store_dir).returncode == 0
