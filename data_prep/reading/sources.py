"""Where a corpus lies, and where each kind keeps text, id and what is known of a document: one table.

A document leaves here under the names of `jsonl`: `id`, `text`, and of `language`, `language_score`, `url`,
`date`, `signals`, `source_duplicate` what its source has.
"""

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
    TEXT_FIELDS,
    Document,
    SetAside,
    find_files,
    look_up,
    read_documents,
)
from lit_gpt.cli import InputError


@dataclass(frozen=True)
class Source:
    """Field names of one kind of corpus. A dotted name goes into nested objects."""

    text: tuple[str, ...]
    id: tuple[str, ...] = ()
    """Without one of these the id is `file:line`."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Our name -> its name."""
    all_fields: bool = False
    """Keep the other fields too."""
    redpajama: bool = False
    """Laid out in `documents`, `quality_signals` and `duplicates`, one file of each kind for a shard."""


SOURCES = {
    "jsonl": Source(text=TEXT_FIELDS, id=ID_FIELDS, all_fields=True),
    "redpajama_v2": Source(
        text=("raw_content",),
        fields={
            "language": "language",
            "language_score": "language_score",
            "url": "url",
            "date": "date_download",
        },
        redpajama=True,
    ),
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
    "fineweb2": Source(
        text=("text",),
        id=("id",),
        fields={
            "language": "language",
            "language_score": "language_score",
            "url": "url",
            "date": "date",
        },
    ),
}


HUB = "hf://datasets/"
_HUB_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst")


def find_inputs(patterns: Sequence[str], download: bool = True) -> list[Path]:
    """The files that paths, globs and datasets of the Hugging Face hub name, in the order given.

    Args:
        patterns: `hf://datasets/OWNER/NAME`, with `@REVISION` and `/GLOB` if wanted, is a dataset's files.
        download: fetch what the hub's local cache lacks; jobs do without a network.

    Raises:
        InputError: as `find_files`, or a dataset cannot be had.
    """
    files: list[Path] = []
    for pattern in patterns:
        files += _from_hub(pattern, download) if pattern.startswith(HUB) else find_files([pattern])
    if repeated := [file for file, count in Counter(files).items() if count > 1]:
        raise InputError(f"--input names {repeated[0]} more than once; name it once")
    return files


def _from_hub(name: str, download: bool) -> list[Path]:
    from huggingface_hub import snapshot_download  # a second to import, for those who need it

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


def read_source(file: Path, source: Source, set_aside: SetAside) -> Iterator[Document]:
    """The documents of a file, their fields under our names.

    Raises:
        InputError: more lines than `set_aside` allows, or a RedPajama file outside its layout.
    """
    documents = read_documents([file], set_aside, source.text, source.id)
    if source.redpajama:
        documents = _with_annotations(documents, file, set_aside)
    for document in documents:
        yield document if source.all_fields else _renamed(document, source)


def _renamed(document: Document, source: Source) -> Document:
    found = ((name, look_up(document.metadata, path)) for name, path in source.fields.items())
    metadata = {name: value for name, value in found if value is not None}
    metadata |= {name: document.metadata[name] for name in ANNOTATIONS if name in document.metadata}
    return document._replace(metadata=metadata)


ANNOTATIONS = ("signals", "source_duplicate")


def _with_annotations(documents: Iterator[Document], file: Path, set_aside: SetAside) -> Iterator[Document]:
    """RedPajama V2: ids as in its lists, quality signals of the whole document, whether it is a duplicate."""
    root, shard = _redpajama_place(file)
    name = shard.removesuffix(".json.gz")
    repeated = _duplicate_rows(root / "duplicates" / f"{name}.duplicates.parquet", set_aside)
    signals = _signals(root / "quality_signals" / f"{name}.signals.json.gz", set_aside)
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


def _signals(file: Path, set_aside: SetAside) -> Iterator[tuple[int, dict[str, float]]]:
    """(row, name -> value): the signals given as one span, which is the whole document."""
    if not file.exists():
        return
    for line in read_documents([file], set_aside, ("id",), ()):
        spans = line.metadata.get("quality_signals")
        row = line.text.rpartition("/")[2]
        if not isinstance(spans, dict) or not row.isdecimal():
            set_aside.add(file, Rejected(line.source_line, "no quality signals"))
            continue
        values = {name: span[0][2] for name, span in spans.items() if _is_one_span(span)}
        yield int(row), values


def _is_one_span(span: Any) -> bool:
    return isinstance(span, list) and len(span) == 1 and isinstance(span[0], list) and len(span[0]) == 3


def _duplicate_rows(file: Path, set_aside: SetAside) -> set[int]:
    """Rows of the shard that the source lists as duplicates of documents elsewhere."""
    if not file.exists():
        return set()
    try:
        ids = pq.read_table(file, columns=["doc_id"])["doc_id"].to_pylist()
        return {int(document_id.rpartition("/")[2]) for document_id in ids}
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        set_aside.add(file, Rejected(1, f"list of duplicates does not load: {type(error).__name__}"))
        return set()
