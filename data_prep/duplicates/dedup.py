"""Drop repeated paragraphs: options, stages and steps of dedup.py. dedup_index.py has the method."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from datatrove.pipeline.base import PipelineStep

from data_prep.duplicates.dedup_index import RepeatFlags, SignatureWriter, find_repeats, part_starts
from data_prep.stages.corpus import Call, CorpusDocument, open_corpus
from data_prep.stages.input_files import CorpusOptions
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import with_summary
from lit_gpt.cli import InputError
from lit_gpt.option_types import NonNegativeInt


@dataclass(kw_only=True)
class Options(CorpusOptions, ExecutionOptions):
    """Drop paragraphs that occur in an earlier document of the input.

    A paragraph is a line that is not blank. What a document repeats of its own stays: it may be a refrain. A
    document left without any paragraph is dropped.
    """

    min_paragraph_bytes: NonNegativeInt = 0
    """Keep shorter paragraphs, repeated or not."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Stages that deduplicate the paragraphs of `files`, which need not exist yet, into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    tasks, min_bytes = options.n_tasks(len(files)), options.min_paragraph_bytes
    # own_repeats: earlier revisions dropped them, and hashed each occurrence.
    settings = {"min_paragraph_bytes": min_bytes, "tasks": tasks, "own_repeats": "stay"}
    read, write = open_corpus(files, options, folder, settings)
    sign = SignParagraphs(folder, min_bytes)
    repeats = Call("repeats", partial(_find_repeats, folder, tasks))
    drop = DropRepeats(folder, min_bytes, tasks)
    stages = [
        Stage("dedup-signatures", [read, sign], tasks, folder),
        Stage("dedup-repeats", [repeats], tasks, folder),
        Stage("dedup-drop", [read, drop, write], tasks, folder),
    ]
    return with_summary(stages, "Without repeated paragraphs")


def paragraphs(lines: list[bytes], min_bytes: int) -> list[bytes]:
    """The different lines that take part, in order: not blank, and at least `min_bytes` long."""
    return list(dict.fromkeys(line for line in lines if len(line) >= min_bytes and not line.isspace()))


def _find_repeats(folder: Path, n_parts: int, share: int, n_shares: int) -> dict[str, int]:
    """Stage 2: finds the repeats among the hashes of one share."""
    return {"repeats": find_repeats(folder / "signatures", folder / "repeats", n_parts, share, n_shares)}


class SignParagraphs(PipelineStep):
    """Stage 1: writes the hashes of the paragraphs of the task's documents."""

    type, name = "DEDUP", "signatures"

    def __init__(self, folder: Path, min_bytes: int) -> None:
        super().__init__()
        self.folder = folder
        self.min_bytes = max(min_bytes, 1)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        digest, min_bytes = xxhash.xxh3_128_digest, self.min_bytes
        writer = SignatureWriter(self.folder / "signatures", rank)
        n_paragraphs = 0
        for document in data:
            lines = document.text.encode().split(b"\n")
            digests = [digest(line) for line in paragraphs(lines, min_bytes)]
            writer.add(digests)
            n_paragraphs += len(digests)
            yield document
        writer.close()
        self.stat_update("paragraphs", value=n_paragraphs)


class DropRepeats(PipelineStep):
    """Stage 3: removes the repeats from the documents; drops a document that loses every line."""

    type, name = "DEDUP", "drop"

    def __init__(self, folder: Path, min_bytes: int, n_shares: int) -> None:
        super().__init__()
        self.folder = folder
        self.min_bytes = max(min_bytes, 1)
        self.n_shares = n_shares

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """
        Raises:
            InputError: the paragraphs of the task's files are not those that stage 1 hashed.
        """
        starts = part_starts(self.folder / "signatures", world_size)
        flags = RepeatFlags(self.folder / "repeats", self.n_shares, int(starts[rank]))
        n_bytes = n_documents = n_paragraphs = 0
        for document in data:
            lines = document.text.encode().split(b"\n")
            considered = paragraphs(lines, self.min_bytes)
            repeated = flags.take(len(considered))
            n_paragraphs += len(repeated)
            if repeated.any():
                n_documents += 1
                n_bytes += _drop(document, lines, dict(zip(considered, repeated.tolist(), strict=True)))
            yield document
        if n_paragraphs != starts[rank + 1] - starts[rank]:
            raise InputError(f"the input changed while {self.folder} was made from it: begin in a new folder")
        self.stat_update("documents_changed", value=n_documents)
        self.stat_update("repeated_bytes", value=n_bytes)


def _drop(document: CorpusDocument, lines: list[bytes], repeated: dict[bytes, bool]) -> int:
    """Remove repeated lines, each with the blank lines after it. Returns the bytes of the repeated lines."""
    left, n_bytes, dropping = [], 0, False
    for line in lines:
        if line in repeated:
            dropping = repeated[line]
            n_bytes += len(line) if dropping else 0
        elif line.strip():
            dropping = False
        if not dropping:
            left.append(line)
    text = b"\n".join(left).strip(b"\r\n")
    if text.strip():
        document.text = text.decode()
    else:
        document.excluded = {"reason": "only_repeats"}
    return n_bytes
