"""scripts/submit.py against a real SLURM, and launches that it would have prevented."""

import subprocess
import sys

import pytest

from pretrain.launch.processes import expand_hosts
from tests.cluster.running import MAX_STEPS, ROOT, TRAINING, TrainingJob, flags, site

pytestmark = pytest.mark.slow


def test_a_chain_continues_where_requeueing_is_forbidden(slurm, tmp_path, train_store_dir):
    """Three jobs: the first is stopped, the second completes the run, the third is not needed."""
    out_dir = tmp_path / "run"
    size = {"num_nodes": 2, "devices": 2, "time": "00:10:00", "chain": 3}
    run = TRAINING | size | {"train_data_dir": train_store_dir, "out_dir": out_dir}
    command = [sys.executable, ROOT / "scripts/submit.py", *flags(run), "--sbatch_options=--cpus-per-task=1"]
    done = subprocess.run(command, env=slurm.environment | site(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("Submitted batch job")]
    first, second, third = (TrainingJob(slurm, job, out_dir, out_dir / f"slurm-{job}.out") for job in ids)

    first.wait_for_step(10)
    slurm.run("scancel", "--signal=USR1", first.id)
    first.completed()
    second.completed()
    assert "the next job of the chain continues" in first.output
    assert len(first.starts) == 2
    assert (out_dir / f"iter-{MAX_STEPS:08d}-ckpt.pth").is_dir()
    assert slurm.wait(third.id)["JobState"] == "CANCELLED"
    assert not third.output


def test_a_launch_without_srun_is_refused(slurm, tmp_path, train_store_dir):
    run = TRAINING | {
        "num_nodes": 1,
        "devices": 2,
        "train_data_dir": train_store_dir,
        "out_dir": tmp_path / "run",
    }
    words = [sys.executable, str(ROOT / "pretrain/tinyllama_fabric.py"), *flags(run)]
    output = tmp_path / "output.txt"
    job = slurm.submit("--ntasks-per-node=2", f"--output={output}", f"--wrap={' '.join(words)}")
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "write `srun python ...`" in output.read_text()


def test_node_lists_are_read_as_slurm_reads_them(slurm):
    for nodes in ("gpu[08-10,12],login", "a1,a[2-3],b[007-011]", "single"):
        expected = slurm.run("scontrol", "show", "hostnames", nodes).split()
        assert expand_hosts(nodes) == expected
