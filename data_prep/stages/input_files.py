"""The files that a command over a corpus reads: their options, and how the tasks of a stage share them.

FOLDER/input_sizes.json      sizes of the input files when the work began
FOLDER/inputs/000003.json    path, size and SHA-256 of the fourth one, when it had been read
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.reading.inputs import SUFFIXES, find_files, look_into
from data_prep.reading.pages import PAGE_SUFFIXES, holds_pages
from data_prep.reading.sources import SOURCES, Source
from data_prep.stages.pipeline import write_json
from lit_gpt.cli import InputError
from lit_gpt.hashed_files import sha256_of
from lit_gpt.option_types import NonNegativeInt

_SIZES = "input_sizes.json"


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
        source, named = options.read_as(), options.id_fields is not None
        look_into(files, source.text, source.id, named, max_bad_lines=options.max_bad_lines)
    return files


def task_files(files: Sequence[Path], rank: int, n_tasks: int) -> list[int]:
    """Numbers of a task's files: consecutive ones, with about an equal share of the bytes."""
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    middles = np.cumsum(sizes) - sizes / 2
    tasks = np.minimum((middles * n_tasks / max(sizes.sum(), 1)).astype(np.int64), n_tasks - 1)
    return np.flatnonzero(tasks == rank).tolist()


def record_sizes(files: Sequence[Path], folder: Path) -> None:
    """Record the sizes of the input when work in `folder` begins: by them tasks share the files."""
    if not (folder / _SIZES).exists():
        write_json(folder / _SIZES, [file.stat().st_size for file in files])


def check_sizes(files: Sequence[Path], folder: Path) -> None:
    """
    Raises:
        InputError: a file has another size than recorded; a task that starts now would share them otherwise
            than those that are done, and some files would be read twice, or by none.
    """
    if not (folder / _SIZES).exists():  # files that another stage has written
        return
    sizes = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
    for file, size in zip(files, sizes, strict=True):
        if (now := file.stat().st_size) != size:
            raise InputError(
                f"the input changed: {file} had {size:,} bytes when {folder} was begun, now {now:,}; put the "
                "old file back to continue, or give another --output to start anew"
            )


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
