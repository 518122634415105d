"""prepare_data.sh as a job array on a real SLURM."""

import os
import signal
import time

import pytest

from data_prep.tokenizing.job import Options, tokenize
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from tests.cluster.running import ROOT, SCRIPTS, site, step_processes

pytestmark = pytest.mark.slow

SIZE = ["--array=0-1", "--cpus-per-task=1", "--time=10"]


def test_a_lost_task_runs_again_alone(slurm, tmp_path, corpus_files, tokenizer_dir):
    stores = tmp_path / "stores"
    arguments = [str(stores), *map(str, corpus_files), "--", "--tokenizer", str(tokenizer_dir)]
    job = slurm.submit(
        *SIZE,
        f"--output={tmp_path}/%a.out",
        str(SCRIPTS / "prepare_data.sh"),
        *arguments,
        env=slurm.environment | site(TASKS=2, BLOCK_SIZE=128),
        cwd=ROOT,
    )
    kill_step(slurm, SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID="1")
    ends = [slurm.wait(f"{job}_{task}") for task in (0, 1)]
    printed = [(tmp_path / f"{task}.out").read_text() for task in (0, 1)]
    assert [end["JobState"] for end in ends] == ["COMPLETED", "COMPLETED"], printed
    assert [end["Restarts"] for end in ends] == ["0", "1"]

    for task, file in enumerate(corpus_files):
        store = TokenStore.open(stores / f"train-0000{task}")
        assert store.fingerprint == tokenized(file, tokenizer_dir, tmp_path / f"alone{task}", task == 0)
        assert PackedStore.open(store, 128).n_targets == store.n_tokens - store.n_documents
    assert TokenStore.open(stores / "val").n_documents > 0


def kill_step(slurm, **wanted: str) -> None:
    """Kill what srun has started for a task as soon as it is there."""
    deadline = time.monotonic() + 60
    while not (found := step_processes(slurm, **wanted)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(found[0][0], signal.SIGKILL)


def tokenized(file, tokenizer_dir, folder, with_validation) -> str:
    """Fingerprint of the store that the command alone makes of a file."""
    validation = {"val_fraction": 0.01, "val_output": folder / "val"} if with_validation else {}
    tokenize(
        Options(input=[str(file)], tokenizer=tokenizer_dir, output=folder / "train", workers=1, **validation)
    )
    return TokenStore.open(folder / "train").fingerprint


def test_mistakes_end_with_a_line(slurm, tmp_path):
    job = slurm.submit(
        "--cpus-per-task=1",
        f"--output={tmp_path}/out",
        str(SCRIPTS / "prepare_data.sh"),
        env=slurm.environment | site(),
        cwd=ROOT,
    )
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "error: submit by TASKS=16 sbatch --array=0-15" in (tmp_path / "out").read_text()
