"""Stages on this machine: tasks once each, faults that end the run instead of hanging it, jobs' options."""

import dataclasses
import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from datatrove.pipeline.base import PipelineStep
from hypothesis import given
from hypothesis import strategies as st

from data_prep import clean, dedup, minhash, prepare
from data_prep.stages.input_files import task_files
from data_prep.stages.pipeline import ExecutionOptions, MeasureUse, Stage, run_stages
from lit_gpt.cli import InputError, parse_options


class Fault(PipelineStep):
    """Notes that a task ran, and does to rank 1 what it is told."""

    type, name = "TEST", "fault"

    def __init__(self, folder, kind):
        super().__init__()
        self.folder = folder
        self.kind = kind

    def run(self, data=None, rank=0, world_size=1):
        with (self.folder / f"ran-{rank}").open("a") as file:
            file.write("x")
        if rank == 1 and self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and self.kind == "bad input":
            raise InputError("file 1 is no good; fix it")
        yield from ()


def run(folder, kind, workers=2):
    stage = Stage("fault", [Fault(folder, kind)], 4, folder)
    return run_stages([stage], ExecutionOptions(workers=workers), folder, folder / "command.py")


def tasks_run(folder):
    return {path.name: len(path.read_text()) for path in folder.glob("ran-*")}


def peaks_of_tasks(*sizes):
    """Peaks in MB of tasks, one after the other, that hold a document of so many MiB."""

    def documents(megabytes):
        yield b"x" * (megabytes << 20)

    peaks = []
    for megabytes in sizes:
        step = MeasureUse()
        step.run(documents(megabytes))
        peaks.append(step.stats["peak_megabytes"].total)
    return peaks


def test_the_peak_of_a_task_is_its_own():
    # In a process of its own: this one may free at any time what earlier tests left.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        peaks = pool.submit(peaks_of_tasks, 400, 10, 200).result()
    assert peaks[0] - peaks[1] == pytest.approx(390, abs=20)
    assert peaks[2] - peaks[1] == pytest.approx(190, abs=20)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_a_rerun_does_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="a worker process was killed"):
        run(tmp_path, "killed")
    assert not (tmp_path / "logs/fault/completions/00001").exists()
    assert run(tmp_path, "none") is True
    done = tasks_run(tmp_path)
    assert set(done) == {f"ran-{rank}" for rank in range(4)}
    assert done["ran-1"] == 2
    assert run(tmp_path, "none") is True
    assert tasks_run(tmp_path) == done


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_input_in_a_task_is_bad_input_of_the_command(tmp_path, workers):
    with pytest.raises(InputError, match="file 1 is no good"):
        run(tmp_path, "bad input", workers)


def test_a_stage_that_is_none_is_one_line(tmp_path):
    options = ExecutionOptions(stage="wrok")
    with pytest.raises(InputError, match="--stage wrok is none of work, more; jobs give it"):
        run_stages([Stage(name, [], 1, tmp_path) for name in ("work", "more")], options, tmp_path, tmp_path)


def test_slurm_is_refused_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "slurm_jobs.json").write_text('["7"]')  # of an earlier run on a cluster
    options = ExecutionOptions(executor="slurm", slurm_partition="main")
    with pytest.raises(InputError, match="sbatch is not in PATH"):
        run_stages([Stage("x", [], 1, tmp_path)], options, tmp_path, tmp_path / "command.py")


def test_slurm_takes_no_more_tasks_than_one_array_has(tmp_path):
    options = ExecutionOptions(executor="slurm", slurm_partition="main", tasks=1002)
    with pytest.raises(InputError, match=r"--tasks 1,002: .* one array, of at most 1,001"):
        run_stages([Stage("x", [], options.n_tasks(5000), tmp_path)], options, tmp_path, tmp_path)


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40), n_tasks=st.integers(1, 50))
def test_tasks_share_consecutive_files(sizes, n_tasks):
    class Sized:
        def __init__(self, size):
            self.st_size = size

        def stat(self):
            return self

    files = [Sized(size) for size in sizes]
    shares = [task_files(files, rank, n_tasks) for rank in range(n_tasks)]
    assert [file for share in shares for file in share] == list(range(len(files)))
    for share in shares:  # a share is at most its part of the bytes and half a file at each end
        inner = sum(sizes[file] for file in share[1:-1])
        assert inner <= sum(sizes) / n_tasks + 1e-6


@pytest.mark.parametrize("command", [clean, dedup, minhash, prepare])
def test_a_job_gets_the_options_of_the_command(tmp_path, command):
    flags = ["--input", "a", "b", "--output", "o", "--slurm_args", '{"account": "nlp"}', "--tasks", "3"]
    if command in (clean, prepare):
        flags += ["--signals", '{"perplexity": [null, 800]}', "--max_top_ngram_frac", '{"2": 0.1}']
        flags += ["--stop_words", "der", "und", "--min_words", "7"]
    options = parse_options(command.Options, flags)
    config = tmp_path / "options.json"
    config.write_text(json.dumps(dataclasses.asdict(options), default=str))
    read = parse_options(command.Options, ["--config", str(config), "--stage", "work"])
    assert read == dataclasses.replace(options, stage="work")
