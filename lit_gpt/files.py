"""Files that survive a kill: written whole or not at all, or cut back to what is known to be good."""

import fcntl
import io
import json
import os
from pathlib import Path
from typing import Any

from lit_gpt.cli import InputError


def sync(file: io.IOBase) -> int:
    """Bring what was written to disk; returns the position."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        missing: what to do if the file is not there.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that after a crash at any moment there is the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        sync(file)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, required: bool = False) -> io.TextIOWrapper | None:
    """A file, locked against other processes until it is closed or its process ends, however it ends.

    Args:
        required: refuse a file system without locks, where otherwise nobody is kept away.

    Returns:
        None if another process has it.

    Raises:
        OSError: the file cannot be opened; with `required` also, it cannot be locked.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        if required:
            file.close()
            raise
    return file


def cut_back(path: Path, size: int) -> io.BufferedRandom:
    """Open a file for appending as it was when it had `size` bytes; 0 creates it.

    Raises:
        InputError: the file has fewer bytes.
    """
    if size and (not path.is_file() or path.stat().st_size < size):
        raise InputError(f"{path} has lost what was written of it; remove {path.parent} and begin again")
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file
