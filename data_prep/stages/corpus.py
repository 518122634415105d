"""Read and write the documents of a stage: one file of documents per input file, in the same order.

    FOLDER/documents/000003.jsonl.zst          documents kept of the fourth input file: id, text, other fields
    FOLDER/excluded/REASON/000003.jsonl.zst    documents dropped; their field `excluded` says why
    FOLDER/set_aside/000003.json               rejected lines: place and reason

A file gets its name when it is complete. A task takes consecutive input files, so the output does not depend
on the number of tasks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.reading.rejects import Rejects
from data_prep.reading.sources import Source, read_source
from data_prep.stages.input_files import CorpusOptions, check_sizes, task_files
from data_prep.stages.pipeline import write_json
from data_prep.stages.settings import check_settings
from lit_gpt.files import replacing

KEPT = "documents"


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


def file_name(file: int) -> str:
    """Name of the files that a stage writes for an input file."""
    return f"{file:06d}.jsonl.zst"


def kept_files(folder: Path, n_files: int) -> list[Path]:
    return [folder / KEPT / file_name(file) for file in range(n_files)]


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
            InputError: a file has more than `max_bad_lines` unusable lines, or has changed its size.
        """
        check_sizes(self.files, self.folder)
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
