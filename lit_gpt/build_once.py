"""Build a folder once: of several processes that want it one builds and the others wait."""

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lit_gpt.files import lock, rename


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make `folder` unless it is there; killed at any moment, it is complete or missing.

    Args:
        build: fills the empty folder that it is given, durably.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_file = folder.with_suffix(".lock")
    with _turn(lock_file) as alone:
        if not folder.exists():
            prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
            if alone:  # what this machine left there is of a process that was killed
                for leftover in folder.parent.glob(prefix + "*"):
                    shutil.rmtree(leftover)
            building = folder.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
            building.mkdir()
            try:
                build(building)
                _rename_unless_there(building, folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        lock_file.unlink(missing_ok=True)


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Wait for the lock. False where the file system has none: then several may build, and the first wins."""
    try:
        held = lock(path, required=True)
        if held is None:
            print(f"waiting for another process to build {path.with_suffix('')}", file=sys.stderr, flush=True)
            held = lock(path, required=True, wait=True)
    except OSError:
        held = None
    with held or nullcontext():
        yield held is not None


def _rename_unless_there(building: Path, folder: Path) -> None:
    try:
        rename(building, folder)
    except OSError:
        if not (building.exists() and folder.exists()):  # renamed, but not known to be on disk; or not at all
            raise
