"""Documents out of files: one reader, bounded and strict, for every command that reads text.

Read are .jsonl (.ndjson, .json: an object a line), also as .gz or .zst, and .parquet. What cannot be used is
set aside with its place and the reason, and the rest is read.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from data_prep.reading.batches import MAX_LINE_BYTES, TOO_LONG, UNREADABLE, Batch, Rejected, read_batches
from lit_gpt.cli import InputError

TEXT_FIELDS = ("text", "raw_content", "content")
ID_FIELDS = ("id", "doc_id", "document_id")
SUFFIXES = tuple(name + end for name in (".jsonl", ".ndjson", ".json") for end in ("", ".gz", ".zst"))
SUFFIXES += (".parquet",)
_LOOKED_INTO = 200
_MAX_DEPTH = 200
_LOSSES_SHOWN = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """One document as read."""

    id: str
    """`file:line` where none is given."""
    text: str
    source: str
    """The file, as it was given."""
    source_line: int
    """From 1; in a Parquet file the row."""
    metadata: dict[str, Any]
    """The other fields."""


@dataclass
class SetAside:
    """What could not be used, each place named."""

    limit: int = 1000
    """More than so many stop the command."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """(file:line, reason)"""
    counts: dict[str, int] = field(default_factory=dict)
    """Lines by reason; more than there are places where the rest of a file cannot be read."""

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = dict(Counter(reason for _, reason in self.places))

    def add(self, file: Path | str, rejected: Rejected) -> None:
        """Note one place.

        Raises:
            InputError: the limit is passed.
        """
        reason = f"{rejected.reason} ({rejected.detail})" if rejected.detail else rejected.reason
        place = f"{file}:{rejected.line}"
        self.places.append((place, reason))
        self.counts[rejected.reason] = self.counts.get(rejected.reason, 0) + rejected.lines
        if sum(self.counts.values()) > self.limit:
            hint = "mend the input or raise --max_bad_lines"
            raise InputError(f"more than {self.limit} unusable lines, the last {place}: {reason}; {hint}")

    def losses(self) -> list[str]:
        """Where the rest of a file is lost, and how much of it."""
        return [f"{place}: {reason}" for place, reason in self.places if reason.startswith(UNREADABLE)]


def losses_in_short(losses: list[str]) -> list[str]:
    """A line each; of very many the first ones."""
    shown = [f"lost: {loss}" for loss in losses[:_LOSSES_SHOWN]]
    return shown + [f"lost: parts of {len(losses) - _LOSSES_SHOWN:,} more files"] * (
        len(losses) > _LOSSES_SHOWN
    )


class Parsed(NamedTuple):
    """What a batch holds."""

    documents: list[Document]
    rejected: list[Rejected]


def find_files(patterns: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files that paths and globs name, in the order given, each glob sorted.

    Raises:
        InputError: a pattern matches no file, two match the same, a file is empty or of another kind.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            what = "is a folder" if Path(pattern).is_dir() else "names no file"
            raise InputError(
                f"--input {pattern} {what}; give files or a glob of files: {', '.join(suffixes)}"
            )
        files += found
    for file in files:
        if not file.name.endswith(tuple(suffixes)):
            raise InputError(f"--input {file} is none of {', '.join(suffixes)}; convert it or leave it out")
        if not str(file).isprintable():  # it would not go into the records of where a document comes from
            raise InputError(f"--input {str(file)!r} has a name that is not printable UTF-8; rename it")
    for file, count in Counter(files).items():
        if count > 1:
            raise InputError(f"--input names {file} {count} times; name it once")
        if file.stat().st_size == 0 or not os.access(file, os.R_OK):
            what = "is empty" if file.stat().st_size == 0 else "may not be read"
            raise InputError(f"{file} {what}; leave it out of --input or mend it")
    return files


def read_documents(
    files: Sequence[Path],
    set_aside: SetAside,
    text_fields: Sequence[str] = TEXT_FIELDS,
    id_fields: Sequence[str] = ID_FIELDS,
) -> Iterator[Document]:
    """All documents of the files, in order.

    Args:
        set_aside: receives what cannot be used.
        text_fields: the first of them that an object has is its text; `a.b` is a field of a field.
        id_fields: the first of them that an object has, and not as null or "", is its id.

    Raises:
        InputError: no object at the beginning of a file has a text field, or too much is set aside.
    """
    for file in files:
        for batch in read_batches(file):
            documents, rejected = parse_batch(batch, text_fields, id_fields)
            yield from documents
            for each in rejected:
                set_aside.add(file, each)


def look_into(
    files: Sequence[Path], text_fields: Sequence[str], id_fields: Sequence[str], needs_id: bool = False
) -> None:
    """Read each file, of very many a share, up to its first document, before anything is made of them.

    Args:
        needs_id: the id may not be missing.

    Raises:
        InputError: a file has no usable line, its objects have other fields, or no file has a document.
    """
    looked_into, documents = files[:: len(files) // _LOOKED_INTO + 1], []
    for file in looked_into:
        set_aside = SetAside()
        document = next(read_documents([file], set_aside, text_fields, id_fields), None)
        if document is None and set_aside.places:
            place, reason = set_aside.places[0]
            hint = "a document is a JSON object in a line of its own, or a row of Parquet"
            raise InputError(f"{file} has no document that can be used, {place}: {reason}; {hint}")
        if document is None:
            continue
        documents.append(document)
        if needs_id and document.id == f"{file}:{document.source_line}":
            given, wanted = ", ".join(document.metadata)[:200] or "(none)", ", ".join(id_fields)
            raise InputError(
                f"{file} has beside its text the fields {given}, none of {wanted}; name one by "
                "--id_fields, or leave that out to name documents by file and line"
            )
    if not documents and len(looked_into) == len(files):
        raise InputError(f"no document in {', '.join(map(str, files[:3]))}{' ...' * (len(files) > 3)}")


def parse_batch(batch: Batch, text_fields: Sequence[str], id_fields: Sequence[str]) -> Parsed:
    """The documents of a batch; arguments as in `read_documents`.

    Raises:
        InputError: the batch begins its file, and its objects have other fields.
    """
    parsed = Parsed([], list(batch.rejected))
    strangers: list[str] = []
    for number, read in _rows(batch, (text_fields, id_fields)):
        try:
            values = read()
            if _first(text_fields, values) is None:
                strangers = strangers or list(values)
            parsed.documents.append(_document(values, batch.source, number, text_fields, id_fields))
        except ValueError as error:
            parsed.rejected.append(Rejected(number, str(error)))
    if batch.first_line == 1 and strangers and not parsed.documents:
        wanted, given = ", ".join(text_fields), ", ".join(strangers)[:200]
        raise InputError(
            f"{batch.source} has the fields {given}, none of {wanted}; name one by --text_fields"
        )
    return parsed


def _rows(
    batch: Batch, fields: tuple[Sequence[str], Sequence[str]]
) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """(line, function that gives its fields or raises a ValueError with the reason)."""
    if not batch.is_parquet:
        if batch.data.isspace():  # a file blown up by blank lines
            return
        for number, line in enumerate(batch.data.split(b"\n"), batch.first_line):
            if line and not line.isspace():
                yield number, partial(_json_object, line, fields)
    elif batch.data:
        with pa.ipc.open_stream(batch.data) as stream:
            rows = stream.read_next_batch()
        for row in range(len(rows)):
            yield batch.first_line + row, partial(_parquet_row, rows, row)


def _json_object(line: bytes, fields: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    line = line.removeprefix(_BYTE_ORDER_MARK)  # also where files were put one after another
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})" if _is_utf8(line) else "not UTF-8") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if line.count(b"{") + line.count(b"[") > _MAX_DEPTH and _is_deep(values):
        raise ValueError("not JSON (nested too deep)")
    for name in filter(None, (_first(names, values) for names in fields)):
        if line.count(b'"%b"' % name.encode()) > 1 and _keys(line).count(name) > 1:
            raise ValueError(f"field {name} is given twice")
    return values


def _is_deep(values: Any) -> bool:
    """Deeper than can be written again."""
    level = [values]
    for _ in range(_MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [value for each in inner for value in each if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _keys(line: bytes) -> list[str]:
    """The keys of an object as they stand, repeats included."""
    try:
        return json.loads(line, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except RecursionError:
        raise ValueError("not JSON (nested too deep)") from None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet_row(rows: pa.RecordBatch, row: int) -> dict[str, Any]:
    names = rows.schema.names
    if len(set(names)) < len(names):
        raise ValueError("two columns of the same name")
    try:
        return {name: rows.column(name)[row].as_py() for name in names}
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, OverflowError):
        raise ValueError("a value that Python cannot hold") from None


def look_up(values: Any, name: str) -> Any:
    """The value of a field, None if there is none; `a.b` is the field `b` of the object `a`."""
    if name in values or "." not in name:
        return values.get(name)
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _take(values: dict[str, Any], name: str) -> Any:
    """Take a field that is there out of an object."""
    if name in values:
        return values.pop(name)
    *outer, last = name.split(".")
    for part in outer:
        values = values[part]
    return values.pop(last)


def _first(names: Sequence[str], values: dict[str, Any]) -> str | None:
    return next((name for name in names if look_up(values, name) not in (None, "")), None) or next(
        (name for name in names if name in values), None
    )


def _document(
    values: dict[str, Any], source: str, number: int, text_fields: Sequence[str], id_fields: Sequence[str]
) -> Document:
    """Takes the text and the id out of `values`; what remains is the metadata."""
    text_field, id_field = _first(text_fields, values), _first(id_fields, values)
    if text_field is None:
        raise ValueError(f"no field {' or '.join(text_fields)}")
    text = _take(values, text_field)
    if not isinstance(text, str):
        raise ValueError(f"field {text_field} is no string")
    document_id = _take(values, id_field) if id_field is not None else None
    if document_id in (None, ""):
        document_id = f"{source}:{number}"
    elif isinstance(document_id, bool) or not isinstance(document_id, str | int):
        raise ValueError(f"field {id_field} is neither a string nor a whole number")
    if "\0" in text or "\0" in str(document_id):
        raise ValueError("NUL character")
    return Document(str(document_id), text, source, number, values)
