"""What can be said of the batch scripts and the container's recipe without running them."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import zipfile

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


def write_wheel(folder, name, version, requires=""):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_the_lock_takes_public_versions_and_what_they_need(tmp_path, monkeypatch):
    """Not 1.5+cpu, which pip prefers where it finds it, and which needs less."""
    write_wheel(tmp_path, "demo", "1.5", "Requires-Dist: driver\n")
    write_wheel(tmp_path, "demo", "1.5+cpu")
    write_wheel(tmp_path, "driver", "2.0")
    (tmp_path / "requirements.txt").write_text("demo==1.5\n")
    spec = importlib.util.spec_from_file_location("lock", ROOT / "cluster/building/lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(lock, "HERE", tmp_path)
    monkeypatch.setattr(lock, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(lock, "BUILD_TOOLS", [])
    lock.main()
    assert (tmp_path / "requirements.lock").read_text().splitlines()[1:] == [
        f"{name}=={version} --hash=sha256:"
        + hashlib.sha256((tmp_path / f"{name}-{version}-py3-none-any.whl").read_bytes()).hexdigest()
        for name, version in (("demo", "1.5"), ("driver", "2.0"))
    ]
