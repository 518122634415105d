"""Installing Debian's packages in tests."""

import os
import shutil
import subprocess
from pathlib import Path


def apt(*arguments: str, cwd: Path | None = None, settings: Path | None = None) -> None:
    """Run apt-get without questions, by apt's settings or those of a file.

    Raises:
        RuntimeError: there is no apt-get, or it failed; with the end of its output.
    """
    if not shutil.which("apt-get"):
        raise RuntimeError("there is no apt-get to install packages with")
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *arguments]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if settings is not None:
        environment["APT_CONFIG"] = str(settings)
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stdout[-500:].strip()}")


def install_without_starting(*packages: str) -> None:
    """Install packages, whose services are not to come up. RuntimeError as `apt`."""
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        apt("install", "-y", "--no-install-recommends", *packages)
    finally:
        if is_ours:
            policy.unlink()
