"""Sizes and hashes of files, taken while they are written or read.

XXH3 (128 bits) runs at the speed of memory, so that a file can be hashed whenever it is copied. It finds
every accident; it does not protect against forgery. The table "What is hashed" in docs/formats.md lists every
hash and its algorithm.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from lit_gpt.files import naming, open_regular, sync, sync_folder
from lit_gpt.option_types import NonNegativeInt

# Large enough that hashing and writing release the interpreter's lock for most of the time.
_WRITE_BYTES = 16 << 20
_READ_BYTES = 4 << 20  # hashlib.file_digest reads 256 KiB at a time, which is a third slower


@dataclass(frozen=True)
class FileEntry:
    bytes: NonNegativeInt
    xxh3_128: str
    """Hexadecimal."""


class _HashedFile(io.FileIO):
    def __init__(self, path: str) -> None:
        super().__init__(path, "xb")
        self.digest = xxhash.xxh3_128()

    def write(self, data: Any, /) -> int:
        chunk = memoryview(data)[:_WRITE_BYTES]
        with naming(str(self.name)):
            written = super().write(chunk)
        self.digest.update(chunk[:written])
        return written


class HashingReader(io.FileIO):
    """A file that hashes what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.digest = xxhash.xxh3_128()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.digest.update(data)
        return data


def create_hashed(path: Path) -> io.BufferedWriter:
    """Create a new file that is hashed as it is written; finish it with `sync_hashed`. Errors name it."""
    return io.BufferedWriter(_HashedFile(str(path)))


def sync_hashed(file: io.BufferedWriter) -> FileEntry:
    """fsync a file of `create_hashed`.

    Returns:
        Size and hash of the bytes as they were in memory, not as the disk gives them back.
    """
    size = sync(file)
    assert isinstance(file.raw, _HashedFile)
    return FileEntry(size, file.raw.digest.hexdigest())


def write_hashed(path: Path, data: bytes) -> FileEntry:
    """Create a file with this content and fsync it. Errors name it."""
    with create_hashed(path) as file:
        file.write(data)
        return sync_hashed(file)


def hash_files(*paths: Path, durable: bool = False, follow_symlinks: bool = True) -> FileEntry:
    """Read and hash regular files, one after another as if they were one.

    Args:
        durable: fsync them first.
    """
    digest, size = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(_READ_BYTES))
    for path in paths:
        if durable:
            sync_folder(path)
        with open_regular(path, follow_symlinks) as file:
            while n_bytes := file.readinto(buffer):
                digest.update(buffer[:n_bytes])
                size += n_bytes
    return FileEntry(size, digest.hexdigest())


def hash_bytes(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, for comparison with what others publish."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
