"""Read the documents of each kind of corpus under our field names.

They are those of `jsonl`: `id`, `text`, and those of `language`, `language_score`, `url`, `date`, `signals`
and `source_duplicate` that the corpus has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.reading.batches import Rejected
from data_prep.reading.documents import ID_FIELDS, TEXT_FIELDS, Document, look_up, read_documents
from data_prep.reading.pages import holds_pages, read_pages
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import InputError

ANNOTATIONS = ("signals", "source_duplicate")
"""Metadata that RedPajama V2 keeps in files of its own."""


@dataclass(frozen=True)
class Source:
    """Field names of one kind of corpus. `a.b` is the field `b` of the object `a`."""

    text: tuple[str, ...]
    id: tuple[str, ...] = ()
    """A document without any of these gets the id `file:line`."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Our name -> its name."""
    all_fields: bool = False
    redpajama: bool = False
    """Each shard has a file in `documents`, in `quality_signals` and in `duplicates`."""


_PLAIN = {name: name for name in ("language", "language_score", "url", "date")}
SOURCES = {
    "jsonl": Source(text=TEXT_FIELDS, id=ID_FIELDS, all_fields=True),
    "redpajama_v2": Source(text=("raw_content",), fields=_PLAIN | {"date": "date_download"}, redpajama=True),
    "oscar": Source(
        text=("content",),
        id=("warc_headers.warc-record-id",),
        fields={
            "language": "metadata.identification.label",
            "language_score": "metadata.identification.prob",
            "url": "warc_headers.warc-target-uri",
            "date": "warc_headers.warc-date",
        },
    ),
    "html": Source(text=("html", "raw_html", *TEXT_FIELDS), id=ID_FIELDS, all_fields=True),
    "fineweb2": Source(text=("text",), id=("id",), fields=_PLAIN),
}


def read_source(file: Path, source: Source, rejects: Rejects) -> Iterator[Document]:
    """The documents of a file, with fields under our names.

    Raises:
        InputError: too many lines are rejected, or a RedPajama file lies outside its layout.
    """
    if holds_pages(file):
        yield from read_pages(file, rejects)
        return
    documents = read_documents([file], rejects, source.text, source.id)
    if source.redpajama:
        documents = _with_annotations(documents, file, rejects)
    for document in documents:
        yield document if source.all_fields else _renamed(document, source)


def _renamed(document: Document, source: Source) -> Document:
    found = ((name, look_up(document.metadata, path)) for name, path in source.fields.items())
    metadata = {name: value for name, value in found if value is not None}
    metadata |= {name: document.metadata[name] for name in ANNOTATIONS if name in document.metadata}
    return document._replace(metadata=metadata)


def _with_annotations(documents: Iterator[Document], file: Path, rejects: Rejects) -> Iterator[Document]:
    """Add RedPajama V2's ids, quality signals of complete documents, and marks of duplicates."""
    root, shard = _redpajama_place(file)
    name = shard.removesuffix(".json.gz")
    repeated = _duplicate_rows(root / "duplicates" / f"{name}.duplicates.parquet", rejects)
    signals = _signals(root / "quality_signals" / f"{name}.signals.json.gz", rejects)
    signal_row, values = next(signals, (None, {}))
    for document in documents:
        row = document.source_line - 1
        while signal_row is not None and signal_row < row:
            signal_row, values = next(signals, (None, {}))
        if signal_row == row:
            document.metadata["signals"] = values
        if row in repeated:
            document.metadata["source_duplicate"] = True
        yield document._replace(id=f"{shard}/{row}")


def _redpajama_place(file: Path) -> tuple[Path, str]:
    """(`ROOT`, `2023-06/0000/de_head.json.gz`) of `ROOT/documents/2023-06/0000/de_head.json.gz`."""
    parts = file.absolute().parts
    if "documents" not in parts or not file.name.endswith(".json.gz"):
        raise InputError(
            f"{file} is not laid out as RedPajama V2: give ROOT/documents/**/de_*.json.gz, "
            "with ROOT/quality_signals and ROOT/duplicates beside it"
        )
    split = len(parts) - 1 - parts[::-1].index("documents")
    return Path(*parts[:split]), "/".join(parts[split + 1 :])


def _signals(file: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, float]]]:
    """(row, name -> value) of the signals that have one span: the complete document."""
    if not file.exists():
        return
    for line in read_documents([file], rejects, ("id",), ()):
        spans = line.metadata.get("quality_signals")
        row = line.text.rpartition("/")[2]
        if not isinstance(spans, dict) or not row.isdecimal():
            rejects.add(file, Rejected(line.source_line, "no quality signals"))
            continue
        values = {name: span[0][2] for name, span in spans.items() if _is_one_span(span)}
        yield int(row), values


def _is_one_span(span: Any) -> bool:
    return isinstance(span, list) and len(span) == 1 and isinstance(span[0], list) and len(span[0]) == 3


def _duplicate_rows(file: Path, rejects: Rejects) -> set[int]:
    """Rows of the shard that RedPajama lists as duplicates of documents elsewhere."""
    if not file.exists():
        return set()
    try:
        ids = pq.read_table(file, columns=["doc_id"])["doc_id"].to_pylist()
        return {int(document_id.rpartition("/")[2]) for document_id in ids}
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        rejects.add(file, Rejected(1, f"list of duplicates does not load: {type(error).__name__}"))
        return set()
