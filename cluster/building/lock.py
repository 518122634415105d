#!/usr/bin/env python
"""Write requirements.lock: all packages of the container, dependencies included, with their hashes.

    python cluster/building/lock.py      after a change of requirements.txt, on Linux

Lets pip resolve the versions against its configured index, then finds the file of each package for the
container's Python.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parents[1] / "requirements.txt"
PYTHON_VERSION = "3.12"  # of the container
NEWEST_GLIBC = 39  # glibc 2.39, of the container
BUILD_TOOLS = [
    "ninja==1.13.0",
    "packaging",
    "setuptools",
    "wheel",
]  # for FlashAttention-3 and source packages


def main() -> None:
    wanted = ["-r", str(REQUIREMENTS), *BUILD_TOOLS]
    found = _ask_pip(*wanted)
    if exact := _without_local(found):
        found = _ask_pip(*wanted, *exact)
    versions = [f"{package['metadata']['name']}=={package['metadata']['version']}" for package in found]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    container = ["--implementation=cp", f"--python-version={PYTHON_VERSION}"]
    container += [f"--platform={platform}" for platform in platforms]
    lines = sorted(_line(package) for package in _ask_pip("--no-deps", *container, *versions, *exact))
    head = "# Written by lock.py from requirements.txt; do not edit.\n"
    (HERE / "requirements.lock").write_text(head + "\n".join(lines) + "\n")
    print(f"{len(lines)} packages in {HERE / 'requirements.lock'}")


def _ask_pip(*arguments: str) -> list[dict[str, Any]]:
    """What pip would install, by its own report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += [f"--target={folder}", f"--report={report}", *arguments]
        subprocess.run(command, check=True)
        return json.loads(report.read_text())["install"]


def _without_local(found: list[dict[str, Any]]) -> list[str]:
    """Requirements that take the public versions where pip prefers local ones (PEP 440), such as 2.13.0+cpu.

    A local build has another file, and may need other packages: torch for CPUs needs none of nvidia's.
    """
    versions = [(package["metadata"]["name"], package["metadata"]["version"]) for package in found]
    return [f"{name}==={version.partition('+')[0]}" for name, version in versions if "+" in version]


def _line(package: dict[str, Any]) -> str:
    name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
    version = package["metadata"]["version"]
    return f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}"


if __name__ == "__main__":
    main()
