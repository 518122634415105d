"""The work on a batch in a process, and the job's progress, on disk so that a killed job can continue."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import xxhash

from data_prep.reading.batches import Batch, Rejected
from data_prep.reading.documents import TEXT, Content, Document, parse_batch
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import InputError
from lit_gpt.files import read_bounded, write_atomically
from lit_gpt.store import manifest as store_manifest
from lit_gpt.store.manifest import Manifest
from lit_gpt.store.store_writer import UNFINISHED, TokenStoreWriter
from lit_gpt.store.tokenizer import Tokenizer

_VALIDATION_SEED = 1  # another hash than the one that looks ids up


class Encoded(NamedTuple):
    document: Document
    tokens: np.ndarray
    """(n_tokens,) in the store's dtype."""


class Share(NamedTuple):
    """The documents of a batch that go to one store."""

    ids: list[str]
    source_lines: list[int]
    lengths: np.ndarray
    """int64 (n_documents,) tokens."""
    tokens: np.ndarray
    """(sum of lengths,) in the store's dtype."""
    text_bytes: int
    """Bytes of text in UTF-8."""
    words: int


class EncodedBatch(NamedTuple):
    batch: Batch
    """Without its data."""
    shares: tuple[Share, Share]
    """Training, validation."""
    rejected: list[Rejected]
    n_empty: int
    """Documents dropped for their empty text."""
    n_short: int
    """Documents dropped for having fewer than `min_tokens`."""


def encode_batch(
    batch: Batch,
    tokenizer: Path,
    text_fields: Sequence[str],
    id_fields: Sequence[str],
    val_fraction: float,
    min_tokens: int = 0,
) -> EncodedBatch:
    """Parse a batch, split it into training and validation, and tokenize it.

    Args:
        tokenizer: folder of the tokenizer; each process loads it once.
        text_fields, id_fields: as in `read_documents`.
        val_fraction: share of the documents for validation.
        min_tokens: shorter documents are dropped; BOS and EOS count.

    Raises:
        InputError: the file's objects have none of the text fields.
    """
    documents, rejected = parse_batch(batch, text_fields, id_fields)
    full = [document for document in documents if document.text]
    encoded = _load_tokenizer(tokenizer).encode([document.text for document in full])
    long = [Encoded(*each) for each in zip(full, encoded, strict=True) if len(each[1]) >= min_tokens]
    shares = split(long, val_fraction)
    n_empty, n_short = len(documents) - len(full), len(full) - len(long)
    return EncodedBatch(batch._replace(data=b""), shares, rejected, n_empty, n_short)


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document is held out for validation; depends on its id alone."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), _VALIDATION_SEED) < fraction * 2**64


def split(encoded: Sequence[Encoded], val_fraction: float, content: Content = TEXT) -> tuple[Share, Share]:
    """Encoded documents in order, those for training and those for validation."""
    parts: tuple[list[Encoded], list[Encoded]] = ([], [])
    for each in encoded:
        parts[is_validation(each.document.id, val_fraction)].append(each)
    return _share(parts[0], content), _share(parts[1], content)


def _share(encoded: Sequence[Encoded], content: Content) -> Share:
    texts = [text for each in encoded for text in content.strings("", each.document.text)]
    return Share(
        ids=[each.document.id for each in encoded],
        source_lines=[each.document.source_line for each in encoded],
        lengths=np.array([len(each.tokens) for each in encoded], dtype=np.int64),
        tokens=np.concatenate([each.tokens for each in encoded]) if encoded else np.empty(0, np.int32),
        text_bytes=sum(len(text.encode()) for text in texts),
        words=sum(len(text.split()) for text in texts),
    )


@functools.cache
def _load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


SNAPSHOT = UNFINISHED + "json"

RecordT = TypeVar("RecordT")


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished store."""
    return (folder / store_manifest.NAME).exists() and not (folder / SNAPSHOT).exists()


@dataclass
class Counts:
    """What one store holds."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    words: int = 0

    def add(self, share: Share) -> None:
        self.documents += len(share.ids)
        self.tokens += len(share.tokens)
        self.text_bytes += share.text_bytes
        self.words += share.words

    def describe(self, ratios: bool) -> dict[str, float]:
        """The counts and, of documents that are BOS, text, EOS, the ratios of the text."""
        if not ratios:
            return asdict(self)
        text_tokens = self.tokens - 2 * self.documents
        return asdict(self) | {
            "tokens_per_word": round(text_tokens / max(self.words, 1), 4),
            "bytes_per_token": round(self.text_bytes / max(text_tokens, 1), 4),
        }


@dataclass
class State:
    """Progress of a job: everything before (file, line) is in the writers' snapshots."""

    settings: dict[str, Any]
    """All that the store's bytes depend on, except the input."""
    inputs: list[list[Any]]
    """[path, bytes, modification time in ns] of every file."""
    val_output: str
    file: int = 0
    line: int = 1
    position: int = 0
    """Bytes read of the current file."""
    file_hashes: list[str] = field(default_factory=list)
    """xxh3_128 of the files before."""
    set_aside: Rejects = field(default_factory=Rejects)
    n_empty: int = 0
    """Documents dropped for their empty text."""
    n_short: int = 0
    """Documents dropped for their few tokens."""
    counts: list[Counts] = field(default_factory=lambda: [Counts(), Counts()])
    """Training, validation."""
    writers: list[dict[str, Any] | None] = field(default_factory=lambda: [None, None])

    def or_found_in(self, folder: Path) -> "State | None":
        """The state that a killed run left in `folder`, else this one. None if the folder is finished.

        Raises:
            InputError: the folder holds work with other settings or other files.
        """
        found = _load(folder / SNAPSHOT)
        wanted = {"input": self.inputs, "val_output": self.val_output} | self.settings
        if found is not None:
            there = {"input": found.inputs, "val_output": found.val_output} | found.settings
        elif (folder / store_manifest.NAME).exists():
            provenance = Manifest.read(folder).provenance
            inputs = [[each["path"], each["bytes"]] for each in provenance.get("inputs", [])]
            there = {"input": inputs} | provenance.get("settings", {})
            wanted = {"input": [[path, size] for path, size, _ in self.inputs]} | self.settings
        else:
            return self
        if changed := [name for name in wanted if there.get(name) != wanted[name]]:
            hint = "give the same again, another --output, or remove it"
            raise InputError(f"{folder} was begun with another {', '.join(changed)}; {hint}")
        return found

    def save(self, folder: Path, writers: Sequence[TokenStoreWriter]) -> None:
        self.writers = [writer.snapshot() for writer in writers]
        write_atomically(folder / SNAPSHOT, json.dumps(asdict(self)))

    def take(self, encoded: EncodedBatch) -> None:
        """Count a batch and move on to the next.

        Raises:
            InputError: too many lines are rejected.
        """
        batch = encoded.batch
        for counts, share in zip(self.counts, encoded.shares, strict=True):
            counts.add(share)
        self.n_empty += encoded.n_empty
        self.n_short += encoded.n_short
        for rejected in encoded.rejected:
            self.set_aside.add(batch.source, rejected)
        self.line, self.position = batch.next_line, batch.position
        if batch.file_hash is not None:
            self.file_hashes.append(batch.file_hash)
            self.file, self.line, self.position = self.file + 1, 1, 0

    def provenance(self, command: str, part: int, ratios: bool = True) -> dict[str, Any]:
        """Provenance for the manifest of a part: 0 is training, 1 is validation."""
        inputs = zip(self.inputs, self.file_hashes, strict=True)
        return {
            "command": command,
            "part": ("training", "validation")[part],
            "inputs": [{"path": path, "bytes": size, "xxh3_128": hash_} for (path, size, _), hash_ in inputs],
            "settings": self.settings,
            "counts": self.counts[part].describe(ratios),
            "empty_documents": self.n_empty,
            "short_documents": self.n_short,
            "set_aside": self.set_aside.counts,
            "losses": self.set_aside.losses(),
        }

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size, _ in self.inputs)

    @property
    def bytes_done(self) -> int:
        """Bytes of all files that are tokenized so far."""
        return self.position + sum(size for _, size, _ in self.inputs[: self.file])


def _load(path: Path) -> State | None:
    """
    Raises:
        InputError: the file is damaged, or an earlier revision with other fields wrote it.
    """
    if not path.exists():
        return None
    content = read_bounded(path, path.stat().st_size)  # names every rejected line
    try:
        values = json.loads(content)
        values["set_aside"] = _record(Rejects, values["set_aside"])
        values["counts"] = [_record(Counts, counts) for counts in values["counts"]]
        return _record(State, values)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged or of another revision: remove {path.parent} and start again"
        ) from error


def _record(record_class: type[RecordT], values: dict[str, Any]) -> RecordT:
    """The record of exactly these fields: a default would lose progress."""
    if set(values) != {field.name for field in fields(cast(type, record_class))}:
        raise ValueError(f"other fields than those of {record_class.__name__}")
    return record_class(**values)
