"""What can be said of the batch scripts and the container's recipe without running them."""

import re
import shutil
import subprocess

import pytest

from tests.cluster.running import ROOT, SCRIPTS

BATCH_SCRIPTS = ["train_fabric.sh", "prepare_data.sh", "convert.sh", "evaluate.sh"]


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "cluster").rglob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", BATCH_SCRIPTS)
def test_sbatch_lines_stand_before_the_first_command(name):
    """SLURM ignores those after it without a word."""
    lines = (SCRIPTS / name).read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first_command for i, line in enumerate(lines) if line.startswith("#SBATCH"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCH_SCRIPTS)
def test_sbatch_accepts(slurm, name):
    slurm.run("sbatch", "--test-only", str(SCRIPTS / name))


def test_lock_holds_what_is_required():
    """After a change of requirements.txt: python cluster/building/lock.py."""
    required = re.findall(
        r"^([\w-]+)(?:\[.*?\])?==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    text = (ROOT / "cluster/building/requirements.lock").read_text()
    locked = dict(re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE))
    assert len(locked) == len(text.splitlines()) - 1
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in required}
    assert canonical.items() <= locked.items()
