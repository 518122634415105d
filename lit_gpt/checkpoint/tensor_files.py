"""Tensors in safetensors files: streamed out, read back one at a time, whole or in boxes.

A tensor that was sharded over ranks lies in several files, each with one box of it. The box's offset stands
in the header's `__metadata__` as torch's `HuggingFaceStorageWriter` puts it (`DCP_SHARDING_INFO`), so torch's
own `HuggingFaceStorageReader` reads these files too. That writer itself is not used: it makes one bytes
object of a rank's whole share while it holds the interpreter's lock (measured: 2 s for 1.6 GB), which stops
the training thread and takes the memory twice.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.cli import InputError
from lit_gpt.files import open_regular

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
# Large enough that hashing and writing release the interpreter's lock for most of the time.
_WRITE_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class FileEntry(NamedTuple):
    """A file as the manifest lists it."""

    size: int
    """Bytes."""
    xxh3_128: str
    """Hexadecimal XXH3 (128 bits) of the whole content."""


class TensorSpec(NamedTuple):
    """A tensor, or one box of it, before its bytes are there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the box, where the tensor is sharded."""
    offset: tuple[int, ...] | None = None
    """Where the box begins in the whole tensor; None where it is the whole."""

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
    """Write one safetensors file, one tensor after the other, and force it to disk.

    Args:
        path: a new file; its folder exists.
        specs: what the file holds; written in order of falling item size, as the format wants it.
        body: gives the CPU tensor of a spec, when its turn has come, whole or some rows after the others; it
            may be dropped right after.

    Returns:
        Size and hash of the bytes as they were in memory, not as the disk gave them back.

    Raises:
        OSError: with the path in it, whatever went wrong.
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    try:
        with open(path, "xb", buffering=0) as file:
            output = _HashingFile(file.fileno())
            output.write(memoryview(_header(ordered)))
            for spec in ordered:
                _write_body(output, spec, body(spec))
            os.fsync(file.fileno())
            return output.entry
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_body(output: "_HashingFile", spec: TensorSpec, body: Tensor | Iterable[Tensor]) -> None:
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
    if offsets := {spec.name: {"saved_offsets": spec.offset} for spec in specs if spec.offset is not None}:
        assert len(offsets) == len(specs), "a file holds either boxes or whole tensors"
        metadata |= {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class _HashingFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hash = xxhash.xxh3_128()
        self._size = 0

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            chunk = data[start : start + _WRITE_BYTES]
            self._hash.update(chunk)
            self._size += len(chunk)
            while chunk:  # a nearly full disk takes less than it was given, before it says so
                chunk = chunk[os.write(self._descriptor, chunk) :]

    @property
    def entry(self) -> FileEntry:
        return FileEntry(self._size, self._hash.hexdigest())


class _Box(NamedTuple):
    file: Path
    start: int  # of its bytes in the file
    offset: tuple[int, ...]
    shape: tuple[int, ...]


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
        self._boxes: dict[str, list[_Box]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for path in sorted(folder / name for name in files):
            try:
                starts = _data_starts(path)  # first: the library would wait for a FIFO
                with safe_open(path, framework="pt") as file:
                    self._read_header(path, file, starts)
            except _UNREADABLE as error:
                raise InputError(f"{path}: not a file of tensors that belong together: {error}") from error
        for name, boxes in self._boxes.items():
            if sum(math.prod(box.shape) for box in boxes) != math.prod(self.shape(name)):
                raise InputError(f"{folder}: {name} has gaps: a file of it is missing")

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._boxes)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        ends = [[o + s for o, s in zip(box.offset, box.shape, strict=True)] for box in self._boxes[key]]
        return tuple(max(axis) for axis in zip(*ends, strict=True))

    def dtype(self, key: str) -> torch.dtype:
        return self._dtypes[key]

    def read(self, key: str) -> Tensor:
        """The whole tensor, in memory of its own."""
        shape = self.shape(key)
        return self.read_box(key, (0,) * len(shape), shape)

    def read_box(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The part of the tensor that begins at `offset` and has `shape`, in memory of its own.

        Raises:
            InputError: a file cannot be read, or was cut short since it was opened.
        """
        result = torch.empty(shape, dtype=self._dtypes[key])
        for box in self._boxes[key]:
            starts = [max(o, b) for o, b in zip(offset, box.offset, strict=True)]
            ends = [
                min(o + s, b + t) for o, s, b, t in zip(offset, shape, box.offset, box.shape, strict=True)
            ]
            if any(start >= end for start, end in zip(starts, ends, strict=True)):
                continue
            source = tuple(slice(s - b, e - b) for s, e, b in zip(starts, ends, box.offset, strict=True))
            target = result[tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, offset, strict=True))]
            if target.shape[1:] == box.shape[1:] and target.is_contiguous():
                _read_rows(box, source, target)
            else:
                rows = torch.empty((len(target), *box.shape[1:]), dtype=result.dtype)
                _read_rows(box, source, rows)
                target.copy_(rows[:, *source[1:]])
        return result

    def _read_header(self, path: Path, file: safe_open, starts: dict[str, int]) -> None:
        sharding = (file.metadata() or {}).get("DCP_SHARDING_INFO")
        offsets = json.loads(sharding) if sharding else None
        for key in cast(Iterator[str], file.keys()):
            header = file.get_slice(key)
            shape = tuple(header.get_shape())
            offset = tuple(offsets[key]["saved_offsets"]) if offsets else (0,) * len(shape)
            dtype = DTYPES[header.get_dtype()]
            if self._dtypes.setdefault(key, dtype) != dtype:
                raise ValueError(f"{key} is {dtype}, elsewhere {self._dtypes[key]}")
            self._boxes.setdefault(key, []).append(_Box(path, starts[key], offset, shape))


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


def _read_rows(box: _Box, source: tuple[slice, ...], rows: Tensor) -> None:
    """Fill contiguous memory with whole rows of a box, from the source's first on."""
    position = box.start + (source[0].start * rows[0].nbytes if source else 0)
    left = _bytes_of(rows)
    try:
        with open_regular(box.file, follow_symlinks=False) as file:
            while left:
                if not (n_bytes := os.preadv(file.fileno(), [left], position)):
                    raise InputError(f"{box.file} was cut short while it was in use")
                left, position = left[n_bytes:], position + n_bytes
    except OSError as error:
        raise InputError(f"{box.file} cannot be read: {error.strerror}") from error
