"""The three stages of paragraph deduplication as steps of a pipeline. dedup_index.py holds the method."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from datatrove.pipeline.base import PipelineStep

from data_prep.stages.corpus import CorpusDocument
from data_prep.stages.dedup_index import RepeatFlags, SignatureWriter, find_repeats, part_starts
from lit_gpt.cli import InputError


def is_paragraph(line: bytes, min_bytes: int) -> bool:
    """Whether a line of a text takes part: not blank, and not shorter than `min_bytes`."""
    return len(line) >= min_bytes and not line.isspace()


class SignParagraphs(PipelineStep):
    """Stage 1: hashes of the paragraphs of the task's documents."""

    type, name = "DEDUP", "signatures"

    def __init__(self, folder: Path, min_bytes: int) -> None:
        super().__init__()
        self.folder = folder
        self.min_bytes = max(min_bytes, 1)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Passes the documents on."""
        digest, min_bytes = xxhash.xxh3_128_digest, self.min_bytes
        writer = SignatureWriter(self.folder / "signatures", rank)
        n_paragraphs = 0
        for document in data:
            lines = document.text.encode().split(b"\n")
            digests = [digest(line) for line in lines if is_paragraph(line, min_bytes)]
            writer.add(digests)
            n_paragraphs += len(digests)
            yield document
        writer.close()
        self.stat_update("paragraphs", value=n_paragraphs)


class FindRepeats(PipelineStep):
    """Stage 2: the repeats among the hashes of the task's share."""

    type, name = "DEDUP", "repeats"

    def __init__(self, folder: Path, n_parts: int) -> None:
        super().__init__()
        self.folder = folder
        self.n_parts = n_parts

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Yields nothing."""
        signatures, repeats = self.folder / "signatures", self.folder / "repeats"
        self.stat_update("repeats", value=find_repeats(signatures, repeats, self.n_parts, rank, world_size))
        yield from ()


class DropRepeats(PipelineStep):
    """Stage 3: takes the repeats out of the documents; a document that loses every line is excluded."""

    type, name = "DEDUP", "drop"

    def __init__(self, folder: Path, min_bytes: int, n_shares: int) -> None:
        super().__init__()
        self.folder = folder
        self.min_bytes = max(min_bytes, 1)
        self.n_shares = n_shares

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """The documents with what is left of their text.

        Raises:
            InputError: the task's files do not have the paragraphs of which stage 1 made signatures.
        """
        starts = part_starts(self.folder / "signatures", world_size)
        flags = RepeatFlags(self.folder / "repeats", self.n_shares, int(starts[rank]))
        n_bytes = n_documents = n_paragraphs = 0
        for document in data:
            lines = document.text.encode().split(b"\n")
            considered = [is_paragraph(line, self.min_bytes) for line in lines]
            repeated = flags.take(sum(considered))
            n_paragraphs += len(repeated)
            if repeated.any():
                n_documents += 1
                n_bytes += _drop(document, lines, considered, iter(repeated.tolist()))
            yield document
        if n_paragraphs != starts[rank + 1] - starts[rank]:
            raise InputError(f"the input changed while {self.folder} was made from it: begin in a new folder")
        self.stat_update("documents_changed", value=n_documents)
        self.stat_update("repeated_bytes", value=n_bytes)


def _drop(
    document: CorpusDocument, lines: list[bytes], considered: list[bool], repeated: Iterator[bool]
) -> int:
    """Takes out repeated lines, each with the blank lines after it; returns the bytes of those lines."""
    left, n_bytes, dropping = [], 0, False
    for line, is_considered in zip(lines, considered, strict=True):
        if is_considered:
            dropping = next(repeated)
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
