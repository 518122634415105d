#!/usr/bin/env python
"""Environments for tests: the newest transformers 4 and 5, and TRL, each in one of its own.

Installed there is the package, and what it needs in another version than here; the rest, above all torch, is
this Python's. They lie in the user's cache folder, and are made again when this Python or a version changes.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, run_command

TRANSFORMERS = ("transformers==4.57.6", "transformers==5.24.0")
TRL = "trl==1.16.0"
_PACKAGES = sysconfig.get_path("purelib")
_MADE = "made"  # written last: without it an environment is not complete


@dataclass
class Options:
    """Make the environments that are missing. Needs a package index."""


def main(options: Options) -> None:
    """Say of each what it has."""
    for package in (*TRANSFORMERS, TRL):
        if find_python(package) is None:
            _make(package)
        print(f"{package}: {_folder(package)}")


def find_python(package: str) -> Path | None:
    """The interpreter that has this version of this package, None if it was not made."""
    folder = _folder(package)
    return folder / "bin/python" if (folder / _MADE).is_file() else None


def _folder(package: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    here = hashlib.sha256(f"{sys.version} {_PACKAGES}".encode()).hexdigest()[:8]
    return cache / "llammlein" / f"{package.replace('==', '-')}-{here}"


def _make(package: str) -> None:
    folder = _folder(package)
    print(f"making {folder}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    [own_packages] = folder.glob("lib/python*/site-packages")
    # What the environment itself has comes first.
    (own_packages / "others.pth").write_text(_PACKAGES + "\n")
    # The environment shows packages that want the other transformers; pip calls that conflicts, and installs.
    command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"pip cannot install {package}: {done.stderr.strip()[-300:]}")
    (folder / _MADE).touch()


if __name__ == "__main__":
    run_command(Options, main)
