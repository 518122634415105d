"""How the scripts find or make an environment where something is lacking. Nothing comes from a network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TOOLS = ["basename", "bash", "cat", "cmp", "cp", "dirname", "env", "grep", "mv", "rm", "sed", "uname"]


@pytest.fixture
def machine(tmp_path):
    """A checkout with the real environment.sh, and a PATH with nothing on it but everyday tools."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    checkout = tmp_path / "check out"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "environment.sh", checkout / "scripts")
    (checkout / "requirements.txt").write_text("# nothing\n")
    return checkout


def install(machine: Path, name: str, script: str) -> None:
    """Put a program on the machine's PATH."""
    program = machine.parent / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def use_environment(machine: Path, part: str = "all", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine.parent / "bin"), "HOME": str(machine.parent), **variables}
    program = f'. "scripts/environment.sh"; use_environment {part}; echo "using $PYTHON"'
    return subprocess.run(
        ["bash", "-euc", program], cwd=machine, env=environment, capture_output=True, text=True, timeout=300
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_no_python_at_all(machine):
    assert "no Python 3.11 or newer found" in refusal(use_environment(machine))


def test_a_python_that_is_too_old_or_does_not_run(machine):
    install(machine, "python3", 'case "$*" in *version_info*) exit 1;; esac')
    install(machine, "python3.12", "echo python3.12: not in this pyenv >&2; exit 127")
    assert "no Python 3.11 or newer found" in refusal(use_environment(machine))


def test_debian_without_venv_is_told_the_package(machine):
    install(machine, "python3", f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"'apt-get install python{version}-venv'" in refusal(use_environment(machine))


def test_a_given_python_that_is_not_there(machine):
    message = refusal(use_environment(machine, PYTHON="/nowhere/python"))
    assert "PYTHON=/nowhere/python: no such program" in message


def test_a_given_python_is_told_what_it_lacks(machine):
    install(machine, "bare", f'exec {sys.executable} -S "$@"')
    (machine / "requirements.txt").write_text("numpy==2.4.6  # arrays\nsafetensors[numpy]==0.8.0\n")
    message = refusal(use_environment(machine, PYTHON="bare"))
    assert "lacks numpy safetensors;" in message


def test_a_given_python_that_has_everything_is_used(machine):
    (machine / "requirements.txt").write_text("# Data\nnumpy==2.4.6\nsafetensors[numpy]==0.8.0\n")
    done = use_environment(machine, PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"using {sys.executable}\n"), done.stderr
    assert not (machine / ".venv").exists()


def wheel(folder: Path, name: str, version: str) -> None:
    """A package with nothing in it, for pip's --find-links."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def installed(machine: Path, name: str) -> str:
    program = f"from importlib.metadata import version; print(version('{name}'))"
    python = machine / ".venv" / "bin" / "python"
    return subprocess.check_output([python, "-c", program], text=True).strip()


@pytest.mark.slow
def test_an_environment_is_made_kept_and_renewed(machine):
    install(machine, "python3", f'exec {sys.executable} "$@"')
    wheels = machine.parent / "wheels"
    # The settings of this machine's pip must not decide: it may pin torch.
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    requirements = machine / "requirements.txt"
    requirements.write_text("torch==9.1.0   # the heavy one\n")
    wheel(wheels, "torch", "9.1.0")

    done = use_environment(machine, **offline)
    assert done.returncode == 0, done.stderr
    assert "Making the environment" in done.stdout
    assert "No CPU build of torch found" in done.stdout
    assert installed(machine, "torch") == "9.1.0"

    done = use_environment(machine, **offline)
    assert (done.returncode, done.stdout) == (0, f"using {machine}/.venv/bin/python\n")

    requirements.write_text("torch==9.2.0\nsomething==1.0\n")
    wheel(wheels, "torch", "9.2.0")
    wheel(wheels, "torch", "9.2.0+cpu")
    done = use_environment(machine, **offline)
    assert done.returncode == 2, "a package that is not to be had is never passed over"
    assert "something" in done.stderr
    assert installed(machine, "torch") == "9.2.0+cpu"

    wheel(wheels, "something", "1.0")
    assert use_environment(machine, **offline).returncode == 0
    assert (installed(machine, "torch"), installed(machine, "something")) == ("9.2.0+cpu", "1.0")

    requirements.write_text("torch==9.2.0\nsomething==1.0\n# Evaluation and development: more\nlater==1.0\n")
    assert use_environment(machine, "model", **offline).returncode == 0, "what is not asked for is not missed"
    assert use_environment(machine, **offline).returncode == 2
    wheel(wheels, "later", "1.0")
    assert use_environment(machine, **offline).returncode == 0
    assert installed(machine, "later") == "1.0"
    assert "Installing" not in use_environment(machine, "model", **offline).stdout

    install(machine, "nvidia-smi", "echo GPU 0")
    requirements.write_text("torch==9.3.0\n")
    wheel(wheels, "torch", "9.3.0")
    done = use_environment(machine, **offline)
    assert done.returncode == 0
    assert "CPU build" not in done.stdout

    os.remove(machine / ".venv" / "bin" / "python")
    assert "Making the environment" in use_environment(machine, **offline).stdout
