"""Documents out of files: one bounded reader for every command that reads text.

What cannot be used is set aside with its place and reason, and the rest is read.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from lit_gpt.cli import InputError

TEXT_FIELDS = ("text", "raw_content", "content")
ID_FIELDS = ("id", "doc_id", "document_id")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BLOCK = 1 << 20
MAX_LINE_BYTES = 32 << 20


class Document(NamedTuple):
    """One document as read."""

    id: str
    text: str
    source: str
    """File it was read from, as it was given."""
    source_line: int
    """From 1."""
    metadata: dict[str, Any]
    """The other fields of its line."""


@dataclass
class SetAside:
    """What could not be used, by reason, each place named."""

    limit: int = 1000
    """More than so many stop the command."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """(file:line, reason)"""

    def add(self, place: str, reason: str) -> None:
        """Note one place.

        Raises:
            InputError: the limit is passed.
        """
        self.places.append((place, reason))
        if len(self.places) > self.limit:
            hint = "mend the input or raise --max_bad_lines"
            raise InputError(f"more than {self.limit} unusable lines, the last {place}: {reason}; {hint}")

    def counts(self) -> dict[str, int]:
        """Number of places by reason."""
        return dict(Counter(reason for _, reason in self.places))


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, in the order given, each glob sorted.

    Raises:
        InputError: a pattern matches nothing, or a file is empty.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise InputError(f"--input {pattern} names no file")
        files += found
    for file in files:
        if file.stat().st_size == 0:
            raise InputError(f"{file} is empty; remove it from --input or write it again")
    return files


def read_documents(
    files: Sequence[Path],
    set_aside: SetAside,
    text_fields: Sequence[str] = TEXT_FIELDS,
    id_fields: Sequence[str] = ID_FIELDS,
) -> Iterator[Document]:
    """All documents of the files, in order.

    Raises:
        InputError: a file without the text field in its first object, or too many lines set aside.
    """
    for file in files:
        for number, line in _lines(file, set_aside):
            if not line.strip():
                continue
            try:
                yield _parse(line, str(file), number, text_fields, id_fields)
            except ValueError as error:
                set_aside.add(f"{file}:{number}", str(error))


def _lines(file: Path, set_aside: SetAside) -> Iterator[tuple[int, bytes]]:
    codec = _CODECS.get(file.suffix)
    raw = pa.OSFile(str(file))
    stream = pa.CompressedInputStream(raw, codec) if codec else raw
    number, rest = 1, b""
    try:
        while block := stream.read(_BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield number, line
                number += 1
    except OSError as error:
        set_aside.add(f"{file}:{number}", f"unreadable from here: {error}")
        return
    yield number, rest


def _parse(
    line: bytes, source: str, number: int, text_fields: Sequence[str], id_fields: Sequence[str]
) -> Document:
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError("not JSON") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    name = next((name for name in text_fields if name in values), None)
    if name is None:
        raise ValueError(f"no field {' or '.join(text_fields)}")
    text = values.pop(name)
    if not isinstance(text, str):
        raise ValueError(f"field {name} is no string")
    key = next((key for key in id_fields if values.get(key) not in (None, "")), None)
    document_id = f"{source}:{number}" if key is None else str(values.pop(key))
    return Document(document_id, text, source, number, values)
