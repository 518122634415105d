"""The stages as job arrays of a real SLURM: the same result, and a rerun submits what is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import dedup, prepare
from lit_gpt.store.token_store import TokenStore
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import contents, stats, write_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    texts = list(german_texts(90, seed=12))
    records = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts + texts[:30])]
    return [write_jsonl(folder / f"{n}.jsonl", records[n::3]) for n in range(3)]


def command(slurm, module, files, output, **flags):
    """Runs a command that submits its stages."""
    argv = [sys.executable, str(Path(module.__file__)), "--output", str(output)]
    argv += ["--input", *map(str, files)]
    flags = {"executor": "slurm", "slurm_partition": "main"} | flags
    flags["slurm_args"] = '{"mem-per-cpu": "1M"}'  # the nodes know of no more
    for flag, value in flags.items():
        argv += [f"--{flag}", str(value)]
    return subprocess.run(argv, env=slurm.environment, cwd=output.parent, text=True, capture_output=True)


def submit(*arguments, **flags):
    """stage -> tasks, as the command prints them; returns when the last job has ended."""
    done = command(*arguments, **flags)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^(\S+): (\d+) tasks in SLURM job (\d+)$", done.stdout, flags=re.MULTILINE)
    if jobs:
        arguments[0].wait(jobs[-1][2])
    return {stage: int(tasks) for stage, tasks, _ in jobs}


def test_deduplication_is_the_same_as_on_one_machine(slurm, tmp_path, files):
    output = tmp_path / "it's a folder"
    submitted = submit(slurm, dedup, files, output)
    assert submitted == {"dedup-signatures": 3, "dedup-repeats": 3, "dedup-drop": 3, "dedup-summary": 1}
    dedup.main(dedup.Options(input=[str(file) for file in files], output=tmp_path / "local", workers=1))
    assert contents(output) == contents(tmp_path / "local")
    assert stats(output)["kept"] == stats(tmp_path / "local")["kept"]
    assert submit(slurm, dedup, files, output) == {}
    # A task whose marker is missing was never finished: it alone runs again.
    (output / "logs" / "dedup-drop" / "completions" / "00001").unlink()
    (output / "documents" / "000001.jsonl.zst").unlink()
    assert submit(slurm, dedup, files, output) == {"dedup-drop": 1}
    assert contents(output) == contents(tmp_path / "local")


def test_nothing_is_submitted_twice(slurm, tmp_path, files):
    output = tmp_path / "out"
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        assert command(slurm, dedup, files, output).returncode == 0
        again = command(slurm, dedup, files, output)
        assert again.returncode == 2
        assert "still work on" in again.stderr
    finally:  # other tests share the cluster
        slurm.run("scancel", "--partition=main")
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert submit(slurm, dedup, files, output)["dedup-drop"] == 3
    assert stats(output)["kept"]["documents"] > 0


def test_later_stages_end_with_a_task_that_failed_and_the_command_runs_again(slurm, tmp_path, files):
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(files[0].read_bytes() + b"no JSON\n")
    given = slurm, dedup, [broken, files[1]], tmp_path / "out"
    assert submit(*given, max_bad_lines=0)["dedup-signatures"] == 2
    assert not (tmp_path / "out" / "documents").exists()
    assert submit(*given, max_bad_lines=1)["dedup-signatures"] == 1
    assert stats(tmp_path / "out")["set_aside"] == {"not JSON (invalid literal, expected 'null')": 1}


def test_a_partition_that_is_none_is_refused_in_one_line(slurm, tmp_path, files):
    done = command(slurm, dedup, files, tmp_path / "out", slurm_partition="nirgends")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: sbatch refuses")
    assert "Traceback" not in done.stderr


def test_the_whole_way_is_the_same_as_on_one_machine(slurm, tmp_path, files):
    flags = {"vocab_size": 512, "val_fraction": 0.2, "block_size": 128, "preset": "none", "slurm_cpus": 1}
    submit(slurm, prepare, files, tmp_path / "slurm", **flags)
    flags["workers"] = 1
    prepare.main(prepare.Options(input=[str(file) for file in files], output=tmp_path / "local", **flags))
    for name in ("train", "val"):
        stores = [TokenStore.open(tmp_path / where / name) for where in ("slurm", "local")]
        assert stores[0].fingerprint == stores[1].fingerprint
