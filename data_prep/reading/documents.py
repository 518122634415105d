"""Parse documents from batches of lines: strict, for every command that reads text.

A document is a JSON object in a line of its own, or a row of Parquet. Unusable lines are rejected with their
place and the reason, and the rest is read.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from data_prep.reading.batches import MAX_LINE_BYTES, TOO_LONG, Batch, Rejected, read_batches
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import InputError

TEXT_FIELDS = ("text", "raw_content", "content")
ID_FIELDS = ("id", "doc_id", "document_id")
_MAX_DEPTH = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """One document."""

    id: str
    """`file:line` if the document has none."""
    text: Any
    """A string, or what `Content` lets pass."""
    source: str
    """The file, as given."""
    source_line: int
    """From 1; the row of a Parquet file."""
    metadata: dict[str, Any]
    is_plain_text: bool = False
    """Whether the text is none of HTML where the others are HTML: a WET record."""


class Content(NamedTuple):
    """What the field with a document's text must hold."""

    strings: Callable[[str, Any], Iterable[str]]
    """All text of a value, given the field's name and the value; raises ValueError with the reason if it is
    unusable."""
    hint: str
    """What to do about files without such a field."""


def _one_string(name: str, value: Any) -> Iterable[str]:
    if not isinstance(value, str):
        raise ValueError(f"field {name} is no string")
    return [value]


TEXT = Content(_one_string, "name one by --text_fields")


def read_documents(
    files: Sequence[Path],
    rejects: Rejects,
    text_fields: Sequence[str] = TEXT_FIELDS,
    id_fields: Sequence[str] = ID_FIELDS,
    content: Content = TEXT,
) -> Iterator[Document]:
    """All documents of the files, in order.

    Args:
        rejects: receives the unusable lines.
        text_fields: the first of them that an object has is its text; `a.b` is the field `b` of object `a`.
        id_fields: the first of them that an object has, and not as null or "", is its id.
        content: what the text must be.

    Raises:
        InputError: no object at the beginning of a file has a text field, or too many lines are rejected.
    """
    for file in files:
        for batch in read_batches(file):
            documents, rejected = parse_batch(batch, text_fields, id_fields, content)
            yield from documents
            for each in rejected:
                rejects.add(file, each)


def sample_texts(
    files: Sequence[Path], n_bytes: float, rejects: Rejects, text_fields: Sequence[str]
) -> Iterator[str]:
    """The texts of `sample_documents`."""
    return (document.text for document in sample_documents(files, n_bytes, rejects, text_fields))


def sample_documents(
    files: Sequence[Path], n_bytes: float, rejects: Rejects, text_fields: Sequence[str]
) -> Iterator[Document]:
    """About `n_bytes` (UTF-8) of text: the beginning of each file, in proportion to its size."""
    total = sum(file.stat().st_size for file in files)
    for file in files:
        left = n_bytes * file.stat().st_size / total
        for document in read_documents([file], rejects, text_fields):
            yield document
            left -= len(document.text.encode())
            if left <= 0:
                break


def parse_batch(
    batch: Batch, text_fields: Sequence[str], id_fields: Sequence[str], content: Content = TEXT
) -> tuple[list[Document], list[Rejected]]:
    """The documents of a batch and its rejected lines; arguments as in `read_documents`.

    Raises:
        InputError: the batch begins its file, and its objects have other fields.
    """
    documents: list[Document] = []
    rejected = list(batch.rejected)
    strangers: list[str] = []
    for number, read in _rows(batch, (text_fields, id_fields)):
        try:
            values = read()
            if _first(text_fields, values) is None:
                strangers = strangers or list(values)
            documents.append(_document(values, batch.source, number, text_fields, id_fields, content))
        except ValueError as error:
            rejected.append(Rejected(number, str(error)))
    if batch.first_line == 1 and strangers and not documents:
        wanted, given = ", ".join(text_fields), ", ".join(strangers)[:200]
        raise InputError(f"{batch.source} has the fields {given}, none of {wanted}; {content.hint}")
    return documents, rejected


def _rows(
    batch: Batch, fields: tuple[Sequence[str], Sequence[str]]
) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """(line, function that returns its fields or raises a ValueError with the reason)."""
    if not batch.is_parquet:
        if batch.data.isspace():  # a decompression bomb of blank lines
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
    line = line.removeprefix(_BYTE_ORDER_MARK)  # in any line: files may have been concatenated
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
    """Whether the object is nested too deep to be written again."""
    level = [values]
    for _ in range(_MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [value for each in inner for value in each if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _keys(line: bytes) -> list[str]:
    """The keys of an object, with repeats."""
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
    """The value of a field, or None; `a.b` is the field `b` of the object `a`."""
    if name in values or "." not in name:
        return values.get(name)
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _take(values: dict[str, Any], name: str) -> Any:
    """Remove a field from an object and return its value."""
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
    values: dict[str, Any],
    source: str,
    number: int,
    text_fields: Sequence[str],
    id_fields: Sequence[str],
    content: Content,
) -> Document:
    """Remove text and id from `values`; the rest becomes the metadata."""
    text_field, id_field = _first(text_fields, values), _first(id_fields, values)
    if text_field is None:
        raise ValueError(f"no field {' or '.join(text_fields)}")
    text = _take(values, text_field)
    strings = content.strings(text_field, text)
    document_id = _take(values, id_field) if id_field is not None else None
    if document_id in (None, ""):
        document_id = f"{source}:{number}"
    elif isinstance(document_id, bool) or not isinstance(document_id, str | int):
        raise ValueError(f"field {id_field} is neither a string nor a whole number")
    if any("\0" in each for each in (*strings, str(document_id))):
        raise ValueError("NUL character")
    return Document(str(document_id), text, source, number, values)
