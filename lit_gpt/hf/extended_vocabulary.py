"""A model with rows for the new tokens of an extended tokenizer; all that it had stays bit for bit.

A new token stands for a row of old ids, its old encoding. From their rows, in fp32 and stored in the dtype of
the weights:

    eeve    embedding: their mean; head: the row of the first (arXiv 2402.14714)
    mean    their mean in both

With tied embeddings there is one matrix, which takes the mean. A new special token stands for the base's
encoding of its string. Rows above the new vocabulary, which no id reaches, stay where the base has them;
others begin as the mean of all old rows, so that they take no more than the average token of the softmax.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gpt.errors import InputError
from lit_gpt.hf.importer import HFSource
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer

EmbeddingInit = Literal["eeve", "mean"]
_CHUNK = 1024  # rows in memory at a time


class ExtendedSource:
    """The parameters of a Hugging Face folder, embedding and head with the new rows."""

    def __init__(self, base: HFSource, extended: Path, init: EmbeddingInit) -> None:
        """Compare the extension's base with the folder's tokenizer.

        Args:
            base: Its folder has the base's tokenizer.
            extended: Folder of the extended tokenizer.
            init: How new rows begin.

        Raises:
            InputError: the folder has no tokenizer, another one than was extended, or one with more ids than
                its model has rows; or the extended tokenizer is not the one that its extension.json is of.
        """
        extension = Extension.read(extended)
        tokenizer = Tokenizer.load(base.folder, cache_words=False)
        if tokenizer.fingerprint != extension.base:
            raise InputError(
                f"{extended} extends another tokenizer ({extension.base[:12]}) than {base.folder} has "
                f"({tokenizer.fingerprint[:12]}); extend that one: --tokenizer {base.folder}"
            )
        if not extension.is_of(tokenizer, Tokenizer.load(extended, cache_words=False)):
            raise InputError(f"{extended}: tokenizer and extension.json differ; extend the tokenizer again")
        if extension.first_new_id > base.config.vocab_rows:
            raise InputError(
                f"{base.folder}: its tokenizer has {extension.first_new_id} ids, its model only "
                f"{base.config.vocab_rows} rows; get the tokenizer of these weights"
            )
        self._base, self._init = base, init
        self._first, self._n_ids = extension.first_new_id, extension.vocab_size
        self._old_ids = [*extension.new_tokens.values(), *_encode(tokenizer, extension.special_tokens)]
        larger = dataclasses.replace(base.config, vocab_size=None).with_vocab_of(self._n_ids)
        self.config = larger if self._n_ids > base.config.vocab_rows else base.config
        self.extension: dict[str, Any] = {"base": extension.base, "first_new_id": self._first}

    def dtype(self, name: str) -> torch.dtype:
        return self._base.dtype(name)

    def read(self, name: str) -> Iterable[Tensor]:
        """As of the base; of the embedding and the head some rows at a time, the new ones among them."""
        if name not in ("transformer.wte.weight", "lm_head.weight"):
            return self._base.read(name)
        first_only = name == "lm_head.weight" and self._init == "eeve"
        [base] = self._base.read(name)
        return self._rows(base, first_only)

    def _rows(self, base: Tensor, first_only: bool) -> Iterator[Tensor]:
        old = base[: self._first]
        centre = _mean(old)
        yield old
        for begin in range(0, len(self._old_ids), _CHUNK):
            chunk = self._old_ids[begin : begin + _CHUNK]
            yield torch.stack([_new_row(old[ids], first_only) if ids else centre for ids in chunk])
        yield base[self._n_ids :]
        yield centre.expand(self.config.vocab_rows - max(self._n_ids, len(base)), -1)


def _new_row(rows: Tensor, first_only: bool) -> Tensor:
    return rows[0] if first_only else _mean(rows)


def _mean(rows: Tensor) -> Tensor:
    """Some rows at a time: the sum of all at once would copy a bf16 matrix in fp32."""
    total = torch.zeros(rows.shape[1])
    for chunk in rows.split(_CHUNK):
        total += chunk.sum(0, dtype=torch.float32)
    return (total / len(rows)).to(rows.dtype)


def _encode(tokenizer: Tokenizer, strings: Iterable[str]) -> Iterator[Sequence[int]]:
    """The ids of each string as plain text."""
    return (ids[1:-1].tolist() for ids in tokenizer.encode([*strings]))
