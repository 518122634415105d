"""The real training command on a disk that becomes full or is gone, and comes back."""

import resource
import subprocess
import time
from pathlib import Path

import pytest

from lit_gpt.checkpoint.folder import list_checkpoints, verify
from pretrain.datapoints.replay import Replay
from tests.pretrain.ranks import train_on_ranks
from tests.pretrain.running import losses, open_run, start, steps_logged, train, wait_until
from tests.pretrain.saving import mounted
from tests.processes import cpu_seconds

LONG = {"max_steps": 100_000, "save_step_interval": 20, "eval_step_interval": 0, "log_step_interval": 1}
RANKS = pytest.mark.parametrize("devices", [1, 2])
POLICY = pytest.mark.parametrize("policy", ["stop", "continue"])


def filled(disk: Path) -> Path:
    """Take all the space that is left: to be called again, as a save that fails gives some back."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError


def begun(run: Path, store: Path, log: Path, **flags: object) -> subprocess.Popen[str]:
    """A run that has trained some steps and saved; its output is not on the disk that will fail."""
    process = start(run, store, log, **LONG, **flags)
    wait_until(lambda: bool(list_checkpoints(run)), process)
    return process


def assert_unbroken(run: Path) -> None:
    """Metrics and log have every step once."""
    assert losses(run)
    report = list(Replay(run).verify())[-1]
    assert report.messages == []


@pytest.mark.slow
@POLICY
def test_a_disk_that_becomes_full(tmp_path, train_store_dir, policy):
    flags = {"max_steps": 100, "save_step_interval": 10, "eval_step_interval": 0, "keep_last": 0}
    with mounted(tmp_path / "disk", "size=5m") as disk:
        run = disk / "run"
        result = train(run, train_store_dir, on_save_error=policy, **flags)
        saved = [step for step, folder in list_checkpoints(run) if verify(folder)]
        assert saved in ([10], [10, 20])
        assert result.returncode == 2
        assert f"checkpoint of step {saved[-1] + 10} was not saved" in result.stderr
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        # It stopped soon, or went on to its end; there the last save met the full disk as well.
        assert (steps_logged(run) < 100) == (policy == "stop")
        assert not (run / "done").exists()

        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        train_on_ranks(1, run, train_store_dir, resume="auto", **flags)
        assert list_checkpoints(run)[-1][0] == 100


@pytest.mark.slow
@RANKS
def test_not_a_byte_left_stops_all_ranks_with_path_and_cause(tmp_path, train_store_dir, devices):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        run = disk / "run"
        process = begun(run, train_store_dir, tmp_path / "output.txt", devices=devices)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            filler = filled(disk)
            time.sleep(0.02)
        assert process.wait(1) == 2
        said = (tmp_path / "output.txt").read_text()
        assert f"{run}/metrics.csv cannot be written: No space left on device" in said
        assert said.count("TensorBoard shows nothing from here on") <= 1
        assert "Traceback" not in said
        assert "Exception" not in said
        filler.unlink()
        saved = list_checkpoints(run)[-1][0]
        flags = LONG | {"max_steps": saved + 10, "resume": "auto"}
        train_on_ranks(devices, run, train_store_dir, **flags)
        assert_unbroken(run)


@pytest.mark.slow
@RANKS
def test_continue_goes_on_says_what_is_missing_and_catches_up(tmp_path, train_store_dir, devices):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        run, output = disk / "run", tmp_path / "output.txt"
        process = begun(run, train_store_dir, output, devices=devices, on_save_error="continue", keep_last=2)
        saved = list_checkpoints(run)[-1][0]
        missing = (
            f"{run}/metrics.csv cannot be written: No space left on device; the run continues",
            "was not saved",
            f"{run}/datapoints/part-",
        )
        wait_until(lambda: filled(disk) and all(text in output.read_text() for text in missing), process)
        filled(disk).unlink()
        wait_until(lambda: "checkpoint is written again" in output.read_text(), process)
        process.terminate()
        assert process.wait(120) == 0
        assert "metrics.csv is written again" in output.read_text()
        assert list_checkpoints(run)[-1][0] > saved + 20
        assert_unbroken(run)


@pytest.mark.slow
@POLICY
def test_a_run_folder_that_is_deleted(tmp_path, train_store_dir, policy):
    run, output = tmp_path / "run", tmp_path / "output.txt"
    process = begun(run, train_store_dir, output, on_save_error=policy)
    run.rename(tmp_path / "moved")
    if policy == "continue":
        wait_until(lambda: output.read_text().count("was not saved") >= 2, process)
        process.terminate()
    assert process.wait(120) == 2
    said = output.read_text()
    assert f"{run}/metrics.csv cannot be written: No such file or directory" in said
    assert "Traceback" not in said
    assert not run.exists()


@pytest.mark.slow
def test_a_read_only_disk_and_back(tmp_path, train_store_dir):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        run, output = disk / "run", tmp_path / "output.txt"
        process = begun(run, train_store_dir, output, on_save_error="continue")
        # A disk with a file open for writing cannot be made read-only; one mounted over it can.
        subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
        try:
            wait_until(lambda: "was not saved" in output.read_text(), process)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        wait_until(lambda: "checkpoint is written again" in output.read_text(), process)
        process.terminate()
        assert process.wait(120) == 0
        assert "Read-only file system" in output.read_text()
        assert_unbroken(run)


@pytest.mark.slow
def test_no_file_may_grow_not_even_the_output(tmp_path, train_store_dir):
    run, output = tmp_path / "run", tmp_path / "output.txt"
    process = begun(run, train_store_dir, output, on_save_error="continue")
    size = output.stat().st_size
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    saved = list_checkpoints(run)[-1][0]
    spent = cpu_seconds(process.pid)
    wait_until(lambda: cpu_seconds(process.pid) > spent + 3, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    wait_until(lambda: list_checkpoints(run)[-1][0] > saved, process)
    process.terminate()
    assert process.wait(120) == 0
    assert "metrics.csv is written again" in output.read_text()[size:]
    assert_unbroken(run)


@pytest.mark.slow
def test_a_folder_in_which_nothing_fits_is_refused_at_the_start(tmp_path, train_store_dir):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "run").mkdir()
        filled(disk)
        result = train(disk / "run", train_store_dir)
        assert result.returncode == 2
        assert "No space left on device" in result.stderr
        assert str(disk / "run") in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_markers_of_the_run_before_are_removed(tmp_path, train_store_dir):
    open_run(tmp_path, train_store_dir, max_steps=6).fit()
    assert (tmp_path / "done").exists()
    process = begun_again(tmp_path, train_store_dir)
    assert not (tmp_path / "done").exists()
    process.terminate()
    assert process.wait(120) == 0
    assert (tmp_path / "requeue").exists()
    assert not (tmp_path / "done").exists()


def begun_again(run: Path, store: Path) -> subprocess.Popen[str]:
    process = start(run, store, resume="auto", max_steps=100_000, log_step_interval=1)
    wait_until(lambda: steps_logged(run) > 10, process)
    return process
