"""The input: find the files, check them, and read the fields of each kind of corpus.

Documents leave `read_source` with the field names of `jsonl`: `id`, `text`, and those of `language`,
`language_score`, `url`, `date`, `signals` and `source_duplicate` that their corpus has.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.reading.batches import Rejected
from data_prep.reading.documents import (
    ID_FIELDS,
    LEFT_OUT,
    TEXT,
    TEXT_FIELDS,
    Content,
    Document,
    Rejects,
    look_up,
    read_documents,
)
from data_prep.reading.pages import PAGE_SUFFIXES, holds_pages, read_pages
from lit_gpt.cli import InputError

SUFFIXES = tuple(name + end for name in (".jsonl", ".ndjson", ".json") for end in ("", ".gz", ".zst"))
SUFFIXES += (".parquet",)
HUB = "hf://datasets/"
_HUB_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst")
_LOOKED_INTO = 200
_CONVERTED_BY = {
    (".warc.zst",): "make a .warc of it by `zstd -d`",
    (".arc", ".arc.gz"): "make a .warc.gz of it by `warcio recompress`",
}


def find_files(
    patterns: Sequence[str], suffixes: Sequence[str] = SUFFIXES, download: bool = True
) -> list[Path]:
    """The files that paths, globs and datasets of the Hugging Face hub name, in the order given, each sorted.

    Args:
        patterns: paths, globs, or `hf://datasets/OWNER/NAME[@REVISION][/GLOB]`.
        suffixes: refuse files of other kinds.
        download: fetch files that the hub's local cache lacks. Jobs may have no network.

    Raises:
        InputError: a pattern matches no file, two match the same, a file is empty or of another kind, or a
            dataset is not available.
    """
    files: list[Path] = []
    for pattern in patterns:
        if pattern.startswith(HUB):
            files += _from_hub(pattern, download)
            continue
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            what = "is a folder" if Path(pattern).is_dir() else "names no file"
            raise InputError(
                f"--input {pattern} {what}; give files or a glob of files: {', '.join(suffixes)}"
            )
        files += found
    for file in files:
        if holds_pages(file) and not set(PAGE_SUFFIXES) <= set(suffixes):
            raise InputError(f"--input {file} holds web pages; let data_prep/extract.py read them first")
        if not file.name.endswith(tuple(suffixes)):
            hint = next((how for end, how in _CONVERTED_BY.items() if file.name.endswith(end)), "convert it")
            raise InputError(f"--input {file} is none of {', '.join(suffixes)}; {hint} or leave it out")
        if not str(file).isprintable():  # the document table could not hold it
            raise InputError(f"--input {str(file)!r} has a name that is not printable UTF-8; rename it")
    times = Counter(map(os.path.abspath, files))  # links keep their names: a hub's cache links equal files
    for file in files:
        if (count := times[os.path.abspath(file)]) > 1:
            raise InputError(f"--input names {file} {count} times; name it once")
        if file.stat().st_size == 0 or not os.access(file, os.R_OK):
            what = "is empty" if file.stat().st_size == 0 else "may not be read"
            raise InputError(f"{file} {what}; leave it out of --input or fix it")
    return files


def _from_hub(name: str, download: bool) -> list[Path]:
    from huggingface_hub import snapshot_download  # takes a second to import

    owner, _, rest = name.removeprefix(HUB).partition("/")
    dataset, _, glob = rest.partition("/")
    dataset, _, revision = dataset.partition("@")
    patterns = [glob] if glob else list(_HUB_FILES)
    try:
        folder = Path(
            snapshot_download(
                f"{owner}/{dataset}",
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=patterns,
                local_files_only=not download,
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{name} cannot be had from the Hugging Face hub: {reason}") from error
    names = (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())
    found = [folder / name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise InputError(f"{name} holds no such files; give hf://datasets/OWNER/NAME/GLOB")
    return found


def look_into(
    files: Sequence[Path],
    text_fields: Sequence[str],
    id_fields: Sequence[str],
    needs_id: bool = False,
    content: Content = TEXT,
    max_bad_lines: int = Rejects.limit,
) -> None:
    """Read each file, or a sample of very many, up to its first document.

    Args:
        needs_id: refuse a document without an id.
        content: what the text must be.
        max_bad_lines: that a file may have.

    Raises:
        InputError: a file has no usable line, its objects have other fields, too many lines come before its
            first document, or no file has a document.
    """
    looked_into, documents = files[:: len(files) // _LOOKED_INTO + 1], []
    for file in looked_into:
        rejects = Rejects(max_bad_lines)
        documents_of_file = (
            read_pages(file, rejects)
            if holds_pages(file)
            else read_documents([file], rejects, text_fields, id_fields, content)
        )
        document = next(documents_of_file, None)
        unusable = (each for each in rejects.places if not each[1].startswith(LEFT_OUT))
        if document is None and (found := next(unusable, None)):
            place, reason = found
            hint = "a document is a JSON object in a line of its own, or a row of Parquet"
            hint = "get the file again, or leave it out" if holds_pages(file) else hint
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
