"""llammlein.def through a real apptainer build, then its image under srun; what needs the network is stubbed.

Base image: a Debian that mmdebstrap makes. apt-get, git and pip do nothing but say what they were asked; the
virtual environment that pip would have filled hands over to the one that runs these tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.local_apptainer import get_apptainer
from tests.cluster.running import ROOT, train
from tests.pretrain.running import losses

pytestmark = pytest.mark.slow

# Where the tests' Python lies; the base image has /usr of its own.
PYTHON_FOLDERS = sorted({sys.prefix, sys.base_prefix} - {"/usr"})

STUB = """#!/bin/sh
echo "stub $(basename "$0") $*"
"""
STUB_GIT = STUB + '[ "$1" != init ] || mkdir -p "$3/hopper"\n'
STUB_PYTHON3 = (
    STUB
    + f"""
mkdir -p $3/bin $3/modules
cp /usr/sbin/apt-get $3/bin/pip
touch $3/modules/flash_attn_interface.py
printf '#!/bin/sh\\nPYTHONPATH=%s exec {sys.executable} "$@"\\n' $3/modules >$3/bin/python
chmod +x $3/bin/python
"""
)


@pytest.fixture(scope="module")
def apptainer_environment(tmp_path_factory) -> dict[str, str]:
    """The environment in which `apptainer` is the program; skips where there is none that works."""
    folder = tmp_path_factory.mktemp("apptainer")
    try:
        program = get_apptainer(folder)
    except RuntimeError as error:
        pytest.skip(f"no apptainer here: {error}")
    for name in ("tmp", "cache"):
        (folder / name).mkdir()
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "APPTAINER_NO_PRIVS": "1",  # a root without every capability cannot hand them on
        "APPTAINER_TMPDIR": str(folder / "tmp"),
        "APPTAINER_CACHEDIR": str(folder / "cache"),
        "APPTAINER_BIND": ",".join(PYTHON_FOLDERS),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory, apptainer_environment) -> Path:
    """A root file system with the stubs."""
    folder = tmp_path_factory.mktemp("base") / "rootfs"
    release = next(
        x for x in Path("/etc/os-release").read_text().splitlines() if x.startswith("VERSION_CODENAME=")
    )
    packages = "--include=bash,coreutils,dash,dpkg,grep,libc-bin,libstdc++6,python3"
    command = ["mmdebstrap", "--quiet", "--variant=extract", packages, "--dpkgopt=path-exclude=/usr/share/*"]
    subprocess.run([*command, release.split("=")[1], folder], check=True)
    shutil.rmtree(folder / "dev")  # devices cannot be copied without the right to make them
    (folder / "dev").mkdir()
    subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
    for name in PYTHON_FOLDERS:
        (folder / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, text in {
        "apt-get": STUB,
        "cc": STUB,
        "c++": STUB,
        "git": STUB_GIT,
        "python3": STUB_PYTHON3,
    }.items():
        (folder / "usr/sbin" / name).write_text(text)  # before /usr/bin in PATH
        (folder / "usr/sbin" / name).chmod(0o755)
    probe = ["apptainer", "exec", str(folder), "true"]
    done = subprocess.run(probe, env=os.environ | apptainer_environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apptainer may not make containers here: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory, base, apptainer_environment) -> Path:
    """What build-image.sh makes of the definition, whose base images alone are replaced."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "cluster", clone / "cluster")
    lines = (ROOT / "llammlein.def").read_text().splitlines(keepends=True)
    replaced = {"Bootstrap:": "Bootstrap: localimage\n", "From:": f"From: {base}\n"}
    (clone / "llammlein.def").write_text("".join(replaced.get(line.split(" ")[0], line) for line in lines))
    done = subprocess.run(
        ["bash", clone / "cluster/building/build-image.sh"],
        env=os.environ | apptainer_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "with CUDA" in done.stdout + done.stderr, "%test did not run"
    return clone / "llammlein.sif"


def test_image_says_what_it_is(image, apptainer_environment):
    def ask(*command: str) -> str:
        environment = os.environ | apptainer_environment
        return subprocess.run(
            ["apptainer", *command, image], env=environment, capture_output=True, text=True
        ).stdout

    assert "apptainer exec --nv llammlein.sif python pretrain/tinyllama_fabric.py" in ask("run-help")
    assert "org.opencontainers.image.licenses: Apache-2.0" in ask("inspect")


def test_image_trains_under_srun(slurm, image, apptainer_environment, tmp_path, train_store_dir):
    settings = apptainer_environment | {"VENV": "", "IMAGE": image, "BIND": train_store_dir}
    job = train(slurm, tmp_path / "run", train_store_dir, site_settings=settings, max_steps=2, warmup_steps=1)
    job.completed()
    assert len(losses(job.out_dir)) == 2
