"""Read and write the documents of a stage: one file of documents per input file, in the same order.

    FOLDER/documents/000003.jsonl.zst          documents kept of the fourth input file: id, text, other fields
    FOLDER/excluded/REASON/000003.jsonl.zst    documents dropped; their field `excluded` says why
    FOLDER/set_aside/000003.json               rejected lines: place and reason
    FOLDER/inputs/000003.json                  path, size and SHA-256 of the input file

A file gets its name when it is complete. A task takes consecutive input files, so the output does not depend
on the number of tasks.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.reading.documents import Rejects
from data_prep.reading.inputs import SOURCES, SUFFIXES, Source, find_files, look_into, read_source
from data_prep.reading.pages import PAGE_SUFFIXES, holds_pages
from data_prep.stages.pipeline import write_json
from data_prep.stages.settings import check_settings
from lit_gpt.cli import InputError
from lit_gpt.files import replacing
from lit_gpt.hashed_files import sha256_of
from lit_gpt.option_types import NonNegativeInt

KEPT = "documents"


@dataclass(kw_only=True)
class CorpusOptions:
    """Input and output."""

    input: list[str]
    """Files, globs, or hf://datasets/OWNER/NAME[@REVISION][/GLOB], in the order of the corpus: .jsonl,
    .jsonl.gz, .jsonl.zst, .parquet; web pages, for extract.py and prepare.py: .warc, .warc.gz, .wet,
    .wet.gz, .html."""
    output: Path
    """Folder for `documents/`, `excluded/`, stats.json, report.md, and markers of finished tasks."""
    source: Literal["jsonl", "redpajama_v2", "oscar", "fineweb2", "html"] = "jsonl"
    """Layout of the corpus; determines its field names (docs/data_prep.md has a table). `html`: the text is
    HTML; extract.py and prepare.py read it, and .warc and .html files."""
    text_fields: list[str] | None = None
    """Field that holds the text: the first of these that a document has (default: set by --source)."""
    id_fields: list[str] | None = None
    """Field that holds the id: the first of these that a document has (default: set by --source)."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop if a file has more unusable lines; the lost rest of a broken file is counted by an estimate."""

    def read_as(self) -> Source:
        source = SOURCES[self.source]
        return dataclasses.replace(
            source, text=tuple(self.text_fields or source.text), id=tuple(self.id_fields or source.id)
        )


def input_files(options: CorpusOptions, in_job: bool, pages: bool = False) -> list[Path]:
    """The files of --input. Outside a job they are downloaded if needed, and checked.

    Args:
        pages: whether they may hold web pages.

    Raises:
        InputError: a file is missing or unusable, or web pages and other documents are mixed.
    """
    if options.source == "html" and not pages:
        raise InputError("--source html: let data_prep/extract.py extract the text first")
    files = find_files(options.input, SUFFIXES + PAGE_SUFFIXES if pages else SUFFIXES, not in_job)
    archives = [file for file in files if holds_pages(file)]
    others = [file for file in files if not holds_pages(file)]
    if archives and others and options.source != "html":
        raise InputError(
            f"--input names {archives[0]} with web pages and {others[0]} with text; prepare them one after "
            "the other, or give --source html if all of them hold HTML"
        )
    if not in_job:
        look_into(files, options.read_as().text, options.read_as().id, options.id_fields is not None)
    return files


def open_corpus(
    files: Sequence[Path], options: CorpusOptions, folder: Path, settings: dict[str, Any]
) -> tuple["ReadFiles", "WriteFiles"]:
    """The first and the last step of a stage over `files`, which need not exist yet.

    Args:
        settings: of the stage; recorded in `folder` with those that say how the input is read.

    Raises:
        InputError: the folder was begun with other settings.
    """
    fields = {"source": options.source, "text_fields": options.text_fields, "id_fields": options.id_fields}
    check_settings(folder, {"files": files} | fields | settings)
    return ReadFiles(files, options.read_as(), folder, options.max_bad_lines), WriteFiles(files, folder)


@dataclass(slots=True)
class CorpusDocument(Document):
    """datatrove's document, its place in the input, and what a stage found out about it."""

    file: int = 0
    is_plain_text: bool = False
    """Of a WET record: no HTML, and nothing to extract."""
    tokens: int = 0
    """Tokens of the text; 0 if not counted."""
    excluded: dict[str, Any] | None = None
    """Why the document is dropped: `reason` and details. None if it is kept."""


def describe_inputs(files: Sequence[Path], folder: Path, rank: int, world_size: int) -> None:
    """Write path, size and hash of the task's input files, so that a model can be traced to them."""
    for file in task_files(files, rank, world_size):
        path = files[file]
        described = {"path": str(path), "bytes": path.stat().st_size, "sha256": _sha256(path)}
        write_json(folder / "inputs" / f"{file:06d}.json", described)


def _sha256(path: Path) -> str | None:
    """None if the file cannot be read to its end."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def file_name(file: int) -> str:
    """Name of the files that a stage writes for an input file."""
    return f"{file:06d}.jsonl.zst"


def kept_files(folder: Path, n_files: int) -> list[Path]:
    return [folder / KEPT / file_name(file) for file in range(n_files)]


def task_files(files: Sequence[Path], rank: int, n_tasks: int) -> list[int]:
    """Numbers of a task's files: consecutive ones, with about an equal share of the bytes."""
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    middles = np.cumsum(sizes) - sizes / 2
    tasks = np.minimum((middles * n_tasks / max(sizes.sum(), 1)).astype(np.int64), n_tasks - 1)
    return np.flatnonzero(tasks == rank).tolist()


class Call(PipelineStep):
    """A step that passes the documents on, then calls a function.

    Args:
        name: of the step, in its logs.
        function: is given (rank, world_size) after the last document; the counts it returns are recorded.
    """

    type = "CALL"

    def __init__(self, name: str, function: Callable[[int, int], dict[str, int] | None]) -> None:
        self.name = name
        super().__init__()
        self.function = function

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        for name, count in (self.function(rank, world_size) or {}).items():
            self.stat_update(name, value=count)


def call_command(
    command: Callable[[Any], None], options: Any, done: Path | None, rank: int, world_size: int
) -> None:
    """Do the work of another command as a `Call`; skip it if the file `done` is there."""
    if done is None or not done.exists():
        command(options)


class ReadFiles(PipelineStep):
    """First step of a stage: yields the documents of the task's files, in order."""

    type, name = "READ", "files"

    def __init__(self, files: Sequence[Path], source: Source, folder: Path, max_bad_lines: int) -> None:
        super().__init__()
        self.files = list(files)
        self.source = source
        self.folder = folder
        self.max_bad_lines = max_bad_lines

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """
        Raises:
            InputError: a file has more than `max_bad_lines` unusable lines.
        """
        for file in task_files(self.files, rank, world_size):
            n_documents = n_bytes = 0
            rejects = Rejects(self.max_bad_lines)
            for document in read_source(self.files[file], self.source, rejects):
                n_documents += 1
                n_bytes += len(document.text.encode())
                yield CorpusDocument(
                    document.text, document.id, [], document.metadata, file, document.is_plain_text
                )
            self.stat_update("documents", value=n_documents)
            self.stat_update("text_bytes", value=n_bytes)
            for reason, count in rejects.counts.items():
                self.stat_update(f"set_aside/{reason}", value=count)
            if rejects.places:
                places = [{"place": place, "reason": reason} for place, reason in rejects.places]
                write_json(self.folder / "set_aside" / f"{file:06d}.json", places)


class WriteFiles(PipelineStep):
    """Last step of a stage: writes the documents, those with `excluded` to files of their reason."""

    type, name = "WRITE", "files"

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        super().__init__()
        self.files = list(files)
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Pass the documents on. An input file without a kept document gets an empty file."""
        counts: Counter[str] = Counter()
        without = set(task_files(self.files, rank, world_size))
        for file, documents in groupby(data, lambda document: document.file):
            without.discard(file)
            with _OutputFiles(self.folder, file) as outputs:
                for document in documents:
                    where = outputs.write(document)
                    counts[f"{where}/documents"] += 1
                    counts[f"{where}/text_bytes"] += len(document.text.encode())
                    counts[f"{where}/tokens"] += document.tokens
                    yield document
        for file in without:
            with _OutputFiles(self.folder, file):
                pass
        for name, count in counts.items():
            self.stat_update(name, value=count)


class _OutputFiles(ExitStack):
    """The output of one input file: documents kept, and dropped ones by reason. Files appear on exit."""

    def __init__(self, folder: Path, file: int) -> None:
        super().__init__()
        self._folder = folder
        self._name = file_name(file)
        self._streams: dict[str, Any] = {}
        self._open(KEPT)

    def write(self, document: CorpusDocument) -> str:
        """Write one document. Returns the folder it went to: `documents` or `excluded/REASON`."""
        named = {"id": document.id, "text": document.text}
        fields = named | document.metadata | named  # named fields come first and win
        where = KEPT
        if document.excluded is not None:
            where = f"excluded/{document.excluded['reason']}"
            fields["excluded"] = document.excluded
        if where not in self._streams:
            self._open(where)
        self._streams[where].write(orjson.dumps(fields, _plain, orjson.OPT_APPEND_NEWLINE))
        return where

    def _open(self, where: str) -> None:
        path = self._folder / where / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = self.enter_context(replacing(path))
        stream = zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False)
        self._streams[where] = self.enter_context(stream)


def _plain(value: Any) -> str:
    """Text for values that Parquet has and JSON lacks: bytes, decimal numbers, durations."""
    return value.hex() if isinstance(value, bytes) else str(value)
