"""Tensors in safetensors files: written as a stream, read back one at a time, complete or some rows of them.

FSDP2 shards tensors by rows (dimension 0). A sharded tensor lies in several files, each with a range of its
rows; the range's offset stands in the header's `__metadata__` as torch's `HuggingFaceStorageWriter` puts it
(`DCP_SHARDING_INFO`), so torch's own `HuggingFaceStorageReader` reads these files too. That writer is not
used: it makes one bytes object of a rank's share while it holds the interpreter's lock (measured: 2 s for
1.6 GB), which stops the training thread and takes the memory twice.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.cli import InputError
from lit_gpt.files import open_regular
from lit_gpt.hashed_files import FileEntry, create_hashed, sync_hashed

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_FILE_BYTES = 4 << 30  # so that several ranks can share the verification of a full set
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class TensorSpec(NamedTuple):
    """A tensor, or a range of its rows, before its bytes are there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the range, where the tensor is sharded."""
    first_row: int | None = None
    """Where the range begins in the complete tensor; None where it is complete."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def split_into_files(specs: Iterable[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    """Group neighbours into files of at most `max_bytes`, or of one tensor that is larger."""
    group: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if group and size + spec.n_bytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(spec)
        size += spec.n_bytes
    if group:
        yield group


def write_tensors(
    path: Path, specs: Iterable[TensorSpec], body: Callable[[TensorSpec], Tensor | Iterable[Tensor]]
) -> FileEntry:
    """Write one safetensors file, one tensor after the other, and fsync it.

    Args:
        path: A new file; its folder exists.
        specs: What the file holds; written in order of falling item size, as the format requires.
        body: Gives the CPU tensor of a spec when its turn has come, complete or some rows at a time; it is
            dropped right after.

    Returns:
        Size and hash of the bytes as they were in memory, not as the disk gives them back.

    Raises:
        OSError: The file cannot be written; with the path in it.
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    with create_hashed(path) as file:
        file.write(_header(ordered))
        for spec in ordered:
            _write_body(file, spec, body(spec))
        return sync_hashed(file)


def _write_body(output: BinaryIO, spec: TensorSpec, body: Tensor | Iterable[Tensor]) -> None:
    n_bytes = 0
    for rows in [body] if isinstance(body, Tensor) else body:
        if rows.dtype != spec.dtype or tuple(rows.shape[1:]) != spec.shape[1:]:
            raise ValueError(f"{spec} announced, {rows.dtype} {tuple(rows.shape)} given")
        output.write(_bytes_of(rows))
        n_bytes += rows.nbytes
    if n_bytes != spec.n_bytes:
        raise ValueError(f"{spec} announced, {n_bytes} bytes given")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor as bytes, without a copy if it is contiguous (numpy knows no bfloat16)."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(specs: list[TensorSpec]) -> bytes:
    end = 0
    entries: dict[str, object] = {}
    for spec in specs:
        start, end = end, end + spec.n_bytes
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    metadata = {"format": "pt"}
    offsets = {
        spec.name: {"saved_offsets": [spec.first_row, *[0] * (len(spec.shape) - 1)]}
        for spec in specs
        if spec.first_row is not None
    }
    if offsets:
        assert len(offsets) == len(specs), "a file holds either sharded or complete tensors"
        metadata |= {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class _Rows(NamedTuple):
    """A range of a tensor's rows in a file; a tensor without dimensions is one row."""

    first: int
    n_rows: int
    file: Path
    start: int
    """Of its bytes in the file."""


class TensorReader:
    """The tensors of some safetensors files, read one at a time.

    Reads headers on opening and nothing else; a tensor in several files is put together when asked for. Files
    are read and not mapped: mapped pages stay resident, and one that cannot be read kills the process.
    Verify the folder first (`lit_gpt.checkpoint.folder.verify`) and leave it as it is: nothing here notices a
    flipped bit.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        """
        Args:
            folder: where the files are.
            files: their names in it, as a manifest's `of_parts(["model"])` has them; no other is opened.

        Raises:
            InputError: a file is none of ours, or a tensor has gaps or differing dtypes.
        """
        self.folder = folder
        self._rows: dict[str, list[_Rows]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder / name for name in files):
            try:
                starts = _data_starts(path)  # first: the library would wait for a FIFO
                with safe_open(path, framework="pt") as file:
                    self._read_header(path, file, starts)
            except _UNREADABLE as error:
                raise InputError(f"{path}: not a file of tensors that belong together: {error}") from error
        for name, ranges in self._rows.items():
            n_rows = 0
            for part in sorted(ranges):
                if part.first != n_rows:
                    raise InputError(f"{folder}: {name} has gaps: a file of it is missing")
                n_rows += part.n_rows
            if shape := self._shapes[name]:
                self._shapes[name] = (n_rows, *shape[1:])

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._rows)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the complete tensor."""
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return self._dtypes[key]

    def read(self, key: str) -> Tensor:
        """The complete tensor, in memory of its own."""
        result = torch.empty(self._shapes[key], dtype=self._dtypes[key])
        self._fill(key, 0, len(result) if result.dim() else 1, result)
        return result

    def read_rows(self, key: str, first: int, n_rows: int) -> Tensor:
        """`n_rows` rows of the tensor from `first` on, in memory of their own.

        Raises:
            InputError: a file cannot be read, or was cut short since it was opened.
        """
        result = torch.empty((n_rows, *self._shapes[key][1:]), dtype=self._dtypes[key])
        self._fill(key, first, n_rows, result)
        return result

    def _fill(self, key: str, first: int, n_rows: int, result: Tensor) -> None:
        """Read a range of rows into contiguous memory."""
        memory = _bytes_of(result)
        row_bytes = result.nbytes // max(n_rows, 1)
        for part in self._rows[key]:
            begin, end = max(first, part.first), min(first + n_rows, part.first + part.n_rows)
            if begin < end:
                target = memory[(begin - first) * row_bytes : (end - first) * row_bytes]
                _read_into(target, part.file, part.start + (begin - part.first) * row_bytes)

    def _read_header(self, path: Path, file: safe_open, starts: dict[str, int]) -> None:
        sharding = (file.metadata() or {}).get("DCP_SHARDING_INFO")
        offsets = json.loads(sharding) if sharding else None
        for key in cast(Iterator[str], file.keys()):
            header = file.get_slice(key)
            shape = tuple(header.get_shape())
            first, *others = (offsets[key]["saved_offsets"] if offsets else ()) or (0,)
            if any(others) or self._shapes.setdefault(key, shape)[1:] != shape[1:]:
                raise ValueError(f"{key} is sharded in another dimension than its rows")
            dtype = DTYPES[header.get_dtype()]
            if self._dtypes.setdefault(key, dtype) != dtype:
                raise ValueError(f"{key} is {dtype}, elsewhere {self._dtypes[key]}")
            rows = _Rows(first, shape[0] if shape else 1, path, starts[key])
            self._rows.setdefault(key, []).append(rows)


def _data_starts(path: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin, which the library checks but does not tell."""
    with open_regular(path, follow_symlinks=False) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(file.read(length))
    return {
        key: 8 + length + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"
    }


def _read_into(memory: memoryview, path: Path, position: int) -> None:
    """Fill memory with the bytes of a file from a position on."""
    try:
        with open_regular(path, follow_symlinks=False) as file:
            while memory:
                if not (n_bytes := os.preadv(file.fileno(), [memory], position)):
                    raise InputError(f"{path} was cut short while it was in use")
                memory, position = memory[n_bytes:], position + n_bytes
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
