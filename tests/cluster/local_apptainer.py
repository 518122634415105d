"""An apptainer for tests: the installed one, else Debian's own package in a folder of its own.

Debian 12 has no apptainer package and that of unstable wants a newer C library, so both are unpacked beside
each other and the programs are pointed at the library that they were built for.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from tests.cluster.debian_packages import apt

HELPERS = ["patchelf", "squashfs-tools", "squashfuse", "uidmap", "mmdebstrap"]
UNPACKED = ["apptainer", "libc6", "libseccomp2", "libsqlite3-0"]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def get_apptainer(folder: Path) -> Path:
    """The program's path.

    Raises:
        RuntimeError: there is none to be had here; the message says why.
    """
    if installed := shutil.which("apptainer"):
        return Path(installed)
    if os.geteuid() != 0 or not KEYRING.exists():
        raise RuntimeError("apptainer is not installed, and only root on Debian can unpack Debian's package")
    apt("update")
    apt("install", "-y", "--no-install-recommends", *HELPERS)
    prefix = folder / "apptainer"
    for package in _download(folder / "packages"):
        subprocess.run(["dpkg-deb", "-x", package, prefix], check=True)
    program = prefix / "usr/bin/apptainer"
    _use_unpacked_library(prefix, [program, *prefix.glob("usr/lib/*/apptainer/bin/starter")])
    # Moved from /, it looks for its settings and state below usr and usr/lib.
    (prefix / "usr/etc").symlink_to("../etc")
    (prefix / "usr/lib/etc").symlink_to("../../etc")
    for parent in ("usr", "usr/lib"):
        (prefix / parent / "var/lib/apptainer/mnt/session").mkdir(parents=True)
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):  # for --fakeroot
        if "root:" not in (file.read_text() if file.exists() else ""):
            with file.open("a") as ranges:
                ranges.write("root:200000:65536\n")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Debian's apptainer does not run here: {done.stderr.strip()}")
    return program


def debian_mirror() -> str:
    """The archive that this machine's own apt uses.

    Raises:
        RuntimeError: none is found.
    """
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    if found := re.search(r"^(?:URIs:|deb )[^\n]*?(\w+://\S+/debian/?)(?=\s)", text + "\n", re.MULTILINE):
        return found[1]
    raise RuntimeError("no Debian mirror among apt's sources")


def _download(folder: Path) -> list[Path]:
    """Packages of Debian unstable, by an apt configuration of their own: the system's stays as it is."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {debian_mirror()} sid main\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    (folder / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    options = {"cwd": folder, "settings": folder / "apt.conf"}
    apt("update", **options)
    apt("download", *UNPACKED, **options)
    return sorted(folder.glob("*.deb"))


def _use_unpacked_library(prefix: Path, programs: list[Path]) -> None:
    libraries = prefix / f"usr/lib/{platform.machine()}-linux-gnu"
    loader = next(libraries.glob("ld-linux-*.so.*"))
    for program in programs:
        subprocess.run(
            ["patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, program],
            check=True,
        )
