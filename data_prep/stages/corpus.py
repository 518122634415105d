"""Documents in and out of the stages: for each input file one file of documents, in the same order.

    FOLDER/documents/000003.jsonl.zst          what is kept of the fourth input file: id, text, other fields
    FOLDER/excluded/REASON/000003.jsonl.zst    what is not, with a field `excluded` that says why
    FOLDER/set_aside/000003.json               its lines that could not be read: place and reason
    FOLDER/inputs/000003.json                  path, size and SHA-256 of the input file

A file has its name when it is complete. A task takes consecutive input files, so that nothing that is written
depends on the number of tasks.
"""

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.reading.documents import SetAside, look_into
from data_prep.reading.sources import SOURCES, Source, find_inputs, read_source
from data_prep.stages.pipeline import write_json
from lit_gpt.files import create, rename, sync
from lit_gpt.hashed_files import sha256_of
from lit_gpt.option_types import NonNegativeInt

KEPT = "documents"


@dataclass(kw_only=True)
class CorpusOptions:
    """What every command over a corpus takes."""

    input: list[str]
    """Files, globs, or hf://datasets/OWNER/NAME[@REVISION][/GLOB], in the order of the corpus: .jsonl,
    .jsonl.gz, .jsonl.zst, .parquet."""
    output: Path
    """Folder for `documents/`, `excluded/`, stats.json, report.html, and the markers of finished tasks."""
    source: Literal["jsonl", "redpajama_v2", "oscar", "fineweb2"] = "jsonl"
    """Kind of corpus: the names of its fields, see data_prep/reading/sources.py."""
    text_fields: list[str] | None = None
    """Field that holds the text: the first of these that a document has (default: as --source names it)."""
    id_fields: list[str] | None = None
    """Field that holds the id: the first of these that a document has (default: as --source names it)."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop when a file has more unusable lines; what is lost of a broken file counts by an estimate."""

    def read_as(self) -> Source:
        """The fields of the corpus."""
        source = SOURCES[self.source]
        return dataclasses.replace(
            source, text=tuple(self.text_fields or source.text), id=tuple(self.id_fields or source.id)
        )


def input_files(options: CorpusOptions, in_job: bool) -> list[Path]:
    """The files of --input; before the first stage they are downloaded where needed, and looked into.

    Raises:
        InputError: a file is not there or cannot be used.
    """
    files = find_inputs(options.input, download=not in_job)
    if not in_job:
        look_into(files, options.read_as().text, options.read_as().id, options.id_fields is not None)
    return files


def fields_given(options: CorpusOptions) -> dict[str, Any]:
    """Those settings of a stage that say how its input is read."""
    return {"source": options.source, "text_fields": options.text_fields, "id_fields": options.id_fields}


@dataclass(slots=True)
class CorpusDocument(Document):
    """datatrove's document, with the place it was read from and what a stage found out about it."""

    file: int = 0
    """Number of the input file."""
    tokens: int = 0
    """Tokens of the text, where a tokenizer counted them."""
    excluded: dict[str, Any] | None = None
    """Why it is not kept: `reason` and what belongs to it."""


def file_name(file: int) -> str:
    """The name under which a stage keeps what came of an input file."""
    return f"{file:06d}.jsonl.zst"


def kept_files(folder: Path, n_files: int) -> list[Path]:
    """The files of documents that a stage leaves in `folder`."""
    return [folder / KEPT / file_name(file) for file in range(n_files)]


def task_files(files: Sequence[Path], rank: int, n_tasks: int) -> list[int]:
    """The numbers of a task's files: consecutive ones with about an equal share of the bytes."""
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    middles = np.cumsum(sizes) - sizes / 2
    tasks = np.minimum((middles * n_tasks / max(sizes.sum(), 1)).astype(np.int64), n_tasks - 1)
    return np.flatnonzero(tasks == rank).tolist()


class ReadFiles(PipelineStep):
    """First step of a stage: the documents of the task's files, in order."""

    type, name = "READ", "files"

    def __init__(self, files: Sequence[Path], source: Source, folder: Path, max_bad_lines: int) -> None:
        super().__init__()
        self.files = list(files)
        self.source = source
        self.folder = folder
        self.max_bad_lines = max_bad_lines

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Documents one by one.

        Raises:
            InputError: a file has more than `max_bad_lines` unusable lines.
        """
        for file in task_files(self.files, rank, world_size):
            n_documents = n_bytes = 0
            set_aside = SetAside(self.max_bad_lines)
            for document in read_source(self.files[file], self.source, set_aside):
                n_documents += 1
                n_bytes += len(document.text.encode())
                yield CorpusDocument(document.text, document.id, [], document.metadata, file)
            self.stat_update("documents", value=n_documents)
            self.stat_update("text_bytes", value=n_bytes)
            for reason, count in set_aside.counts.items():
                self.stat_update(f"set_aside/{reason}", value=count)
            if set_aside.places:
                places = [{"place": place, "reason": reason} for place, reason in set_aside.places]
                write_json(self.folder / "set_aside" / f"{file:06d}.json", places)


class DescribeInputs(PipelineStep):
    """Writes what the input files are, so that a model can be traced to them."""

    type, name = "DESCRIBE", "inputs"

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        super().__init__()
        self.files = list(files)
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Passes the documents on."""
        yield from data
        for file in task_files(self.files, rank, world_size):
            path = self.files[file]
            described = {"path": str(path), "bytes": path.stat().st_size, "sha256": _sha256(path)}
            write_json(self.folder / "inputs" / f"{file:06d}.json", described)


def _sha256(path: Path) -> str | None:
    """None where the file cannot be read to its end."""
    try:
        return sha256_of(path)
    except OSError:
        return None


class WriteFiles(PipelineStep):
    """Last step of a stage: documents to files, those with `excluded` to files of their reason."""

    type, name = "WRITE", "files"

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        super().__init__()
        self.files = list(files)
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Passes the documents on. An input file of which nothing is kept gets an empty file."""
        counts: Counter[str] = Counter()
        without = set(task_files(self.files, rank, world_size))
        for file, documents in groupby(data, lambda document: document.file):
            without.discard(file)
            with _FilesOfOne(self.folder, file) as outputs:
                for document in documents:
                    where = outputs.write(document)
                    counts[f"{where}/documents"] += 1
                    counts[f"{where}/text_bytes"] += len(document.text.encode())
                    counts[f"{where}/tokens"] += document.tokens
                    yield document
        for file in without:
            with _FilesOfOne(self.folder, file):
                pass
        for name, count in counts.items():
            self.stat_update(name, value=count)


def _plain(value: Any) -> str:
    """What Parquet knows and JSON does not: bytes, decimal numbers, durations."""
    return value.hex() if isinstance(value, bytes) else str(value)


class _FilesOfOne:
    """What comes of one input file: the kept documents, and by reason the excluded. All appear at the end."""

    def __init__(self, folder: Path, file: int) -> None:
        self._folder = folder
        self._name = file_name(file)
        self._files: dict[str, tuple[io.BufferedWriter, Any]] = {}

    def __enter__(self) -> "_FilesOfOne":
        self._open(KEPT)
        return self

    def write(self, document: CorpusDocument) -> str:
        """Returns the folder it went to: `documents` or `excluded/REASON`."""
        fields = {"id": document.id, "text": document.text} | document.metadata
        fields |= {"id": document.id, "text": document.text}
        where = KEPT
        if document.excluded is not None:
            where = f"excluded/{document.excluded['reason']}"
            fields["excluded"] = document.excluded
            if where not in self._files:
                self._open(where)
        self._files[where][1].write(orjson.dumps(fields, _plain, orjson.OPT_APPEND_NEWLINE))
        return where

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for where, (file, stream) in self._files.items():
            stream.close()
            sync(file)
            file.close()
            if error is None:
                path = self._folder / where / self._name
                rename(path.with_suffix(".tmp"), path)

    def _open(self, where: str) -> None:
        path = (self._folder / where / self._name).with_suffix(".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = create(path)
        self._files[where] = (file, zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False))
