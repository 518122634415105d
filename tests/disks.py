"""Disks that fail in tests as real ones do."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def on_a_dead_disk(path: Path) -> Iterator[None]:
    """A file as it was, except that each read of its content is EIO; skips where mounting is not allowed.

    It moves to an ext4 of its own, mounted over its old place, whose blocks then vanish.
    """
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image, disk = work / "image", work / "disk"
        disk.mkdir()
        size = path.stat().st_size
        with image.open("wb") as file:
            file.truncate(size + (8 << 20))
        _run("mkfs.ext4", "-q", "-d", _folder_with(path, work / "content"), image)
        device = _run("losetup", "--find", "--show", image).stdout.strip()
        stack.callback(_run, "losetup", "--detach", device)
        _run("mount", "-o", "ro,noload", device, disk)
        stack.callback(_run, "umount", "--all-targets", "--lazy", device)
        _run("mount", "--bind", disk / path.name, path)
        assert path.stat().st_size == size
        os.truncate(image, 0)
        yield


def _folder_with(path: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"needs {error.filename}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to mount a disk: {error.stderr.strip()}")


@contextlib.contextmanager
def read_as_nobody(path: Path, allowed: int = 0) -> Iterator[None]:
    """A file or a folder with few rights or none, for a user for whom that counts."""
    mode, user = path.stat().st_mode, os.geteuid()
    folders = [folder for folder in path.parents if folder.stat().st_mode & 0o005 != 0o005]
    modes = [folder.stat().st_mode for folder in folders]
    path.chmod(allowed)
    try:
        if user == 0:
            for folder in folders:
                folder.chmod(folder.stat().st_mode | 0o055)
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for folder, old in zip(folders, modes, strict=True):
            folder.chmod(old)
        path.chmod(mode)
