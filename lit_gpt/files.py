"""Durable file operations. Only this module syncs, renames and locks files (hashed_files.py hashes them).

After a crash a file written here is complete, or not there, or can be cut back to what was synced.
"""

import errno
import fcntl
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from lit_gpt.errors import InputError

MAX_JSON_BYTES = 64 << 20
_BUFFER = 1 << 16


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Add the path to errors: writing and syncing raise "No space left on device" without one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class _NamingFile(io.FileIO):
    def write(self, data: Any, /) -> int:
        with naming(str(self.name)):
            return super().write(data)


def create(path: Path, mode: str = "wb") -> io.BufferedWriter:
    """Open a file for writing, whose errors name it."""
    return io.BufferedWriter(_NamingFile(str(path), mode), _BUFFER)


def sync(file: io.IOBase) -> int:
    """Flush and fsync; returns the position."""
    file.flush()
    with naming(file.name if isinstance(file, io.BufferedWriter | io.BufferedRandom) else ""):
        os.fsync(file.fileno())
    return file.tell()


def open_regular(path: Path, follow_symlinks: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; never block on a FIFO or a device.

    Raises:
        OSError: it cannot be opened, or is a folder, a FIFO, a device, or (not `follow_symlinks`) a symlink.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_symlinks else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES, follow_symlinks: bool = True) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, or it is larger; EFBIG is decided before anything is read.
    """
    with open_regular(path, follow_symlinks) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return content


def read_json(path: Path, hint: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the object in a JSON file of our own.

    Args:
        hint: What to do if the file is missing.
        limit: Refuse a larger file.

    Raises:
        InputError: naming the file: missing, not a regular file, too large, or not a JSON object.
    """
    try:
        value = json.loads(read_bounded(path, limit).decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {hint}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


@contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that takes the place of `path`: after a crash there is the old content or the new.

    Raises:
        OSError: with the path in it, whatever failed; the partial file is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with create(temporary) as file:
            yield file
            sync(file)
        rename(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def rename(source: Path, target: Path) -> Path:
    """Give a file or folder another name, durably; a file of that name, or an empty folder, is replaced."""
    os.rename(source, target)
    sync_folder(target.parent)
    return target


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, `*.tmp` beside `output`, which gets its name at the end if nothing went wrong.

    Raises:
        InputError: `output` exists, or something could not be written; nothing is left behind.
    """
    if output.exists():
        raise InputError(f"--output {output} already exists; remove it or give another folder")
    temporary = output.with_name(output.name + ".tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            sync_folder(path)
        rename(temporary, output)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{error.filename or temporary}: {error.strerror}") from error
        raise


def unused_path(path: Path) -> Path:
    """The path, or with a number before its suffix where it is taken."""
    numbered = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
    return next(candidate for candidate in chain([path], numbered) if not os.path.lexists(candidate))


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that its names are on disk, or a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can do this for files only
            raise
    finally:
        os.close(descriptor)


def lock(path: Path, required: bool = False, wait: bool = False) -> io.TextIOWrapper | None:
    """A file, locked against other processes until it is closed or its process ends, however it ends.

    The holder may remove the file: a process that then locks the nameless file opens the new one instead.

    Args:
        required: Refuse a file system without locks, where otherwise the lock excludes no process.
        wait: Wait until the other process releases it.

    Returns:
        None if another process has it, and not `wait`.

    Raises:
        OSError: the file cannot be opened; with `required` also, it cannot be locked.
    """
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            if required:
                file.close()
                raise
        if _names(path, file):
            return file
        file.close()


def _names(path: Path, file: io.TextIOWrapper) -> bool:
    """Whether the path still leads to this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def cut_back(path: Path, size: int) -> io.BufferedRandom:
    """Cut a file back to `size` bytes and open it for appending; 0 creates it.

    Raises:
        InputError: the file has fewer bytes.
    """
    if size and (not path.is_file() or path.stat().st_size < size):
        raise InputError(f"{path} has lost what was written of it; remove {path.parent} and begin again")
    file = io.BufferedRandom(_NamingFile(str(path), "r+b" if path.exists() else "w+b"), _BUFFER)
    file.truncate(size)
    file.seek(size)
    return file
