#!/usr/bin/env python
"""Write requirements.lock: every package of the container, to the last dependency, with its hash.

    python cluster/building/lock.py      after a change of requirements.txt

Asks pip, which asks the index that it is set up for; the packages are those for the container's Python.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parents[1] / "requirements.txt"
PYTHON_VERSION = "3.12"  # of the container
NEWEST_GLIBC = 39  # glibc 2.39, of the container
BUILD_TOOLS = ["ninja==1.13.0", "packaging", "setuptools", "wheel"]  # for FlashAttention-3


def main() -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON_VERSION}"]
    command += [f"--platform={platform}" for platform in platforms]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command += [f"--target={folder}", f"--report={report}", "-r", str(REQUIREMENTS), *BUILD_TOOLS]
        subprocess.run(command, check=True)
        packages = json.loads(report.read_text())["install"]
    lines = sorted(_line(package) for package in packages)
    head = "# Written by lock.py from requirements.txt; do not edit.\n"
    (HERE / "requirements.lock").write_text(head + "\n".join(lines) + "\n")
    print(f"{len(lines)} packages in {HERE / 'requirements.lock'}")


def _line(package: dict) -> str:
    name, version = package["metadata"]["name"].lower(), package["metadata"]["version"]
    return f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}"


if __name__ == "__main__":
    main()
