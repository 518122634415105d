"""The work of a worker process: parse a batch of lines, split off validation documents, tokenize."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_prep.reading.batches import Batch, Rejected
from data_prep.reading.documents import Document, parse_batch
from lit_gpt.store.tokenizer import Tokenizer

_VALIDATION_SEED = 1  # another hash than the one that looks ids up


class Share(NamedTuple):
    """The documents of a batch that go to one store."""

    ids: list[str]
    source_lines: list[int]
    lengths: np.ndarray
    """int64 (n_documents,) tokens."""
    tokens: np.ndarray
    """(sum of lengths,) in the tokenizer's dtype."""
    text_bytes: int
    """Bytes of text in UTF-8."""
    words: int
    """Words separated by white space."""


class EncodedBatch(NamedTuple):
    """A tokenized batch."""

    batch: Batch
    """Without its data."""
    shares: tuple[Share, Share]
    """Training, validation."""
    rejected: list[Rejected]
    n_empty: int
    """Documents dropped for their empty text."""


def encode_batch(
    batch: Batch, tokenizer: Path, text_fields: Sequence[str], id_fields: Sequence[str], val_fraction: float
) -> EncodedBatch:
    """Parse a batch, split it into training and validation, and tokenize it.

    Args:
        tokenizer: folder of the tokenizer; each process loads it once.
        text_fields, id_fields: as in `read_documents`.
        val_fraction: share of the documents for validation.

    Raises:
        InputError: the file's objects have none of the text fields.
    """
    documents, rejected = parse_batch(batch, text_fields, id_fields)
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        if document.text:
            parts[is_validation(document.id, val_fraction)].append(document)
    n_empty = len(documents) - len(parts[0]) - len(parts[1])
    loaded = _load_tokenizer(tokenizer)
    shares = (_share(parts[0], loaded), _share(parts[1], loaded))
    return EncodedBatch(batch._replace(data=b""), shares, rejected, n_empty)


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document is held out for validation; depends on its id alone."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), _VALIDATION_SEED) < fraction * 2**64


def _share(documents: Sequence[Document], tokenizer: Tokenizer) -> Share:
    tokens = tokenizer.encode([document.text for document in documents])
    return Share(
        ids=[document.id for document in documents],
        source_lines=[document.source_line for document in documents],
        lengths=np.array([len(each) for each in tokens], dtype=np.int64),
        tokens=np.concatenate(tokens) if tokens else np.empty(0, tokenizer.dtype),
        text_bytes=sum(len(document.text.encode()) for document in documents),
        words=sum(len(document.text.split()) for document in documents),
    )


@functools.cache
def _load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)
