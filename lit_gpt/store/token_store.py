"""The token store: a folder of tokenized documents, written once, then only read.

    shard-00000.bin           the tokens of all documents, one after another (uint16 or int32, little-endian)
    shard-00000.idx           where each document lies, in Megatron-LM's IndexedDataset format
    shard-00000.docs.parquet  one line a document: id, source, source_line, n_tokens
    shard-00000.ids           sorted hashes of the ids
    tokenizer/                a copy of the tokenizer's files
    manifest.json             written last: a folder without it is not a store

docs/formats.md is the specification; lit_gpt/store/store_writer.py writes it.
"""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa

from lit_gpt.cli import InputError
from lit_gpt.hashed_files import hash_files
from lit_gpt.store import manifest as store_manifest
from lit_gpt.store.manifest import DocumentEnds, Manifest
from lit_gpt.store.shard_files import (
    DocumentInfo,
    count_repeats,
    find_hashes,
    find_id,
    read_documents,
    read_index,
    read_sources,
)
from lit_gpt.store.tokenizer import Tokenizer

_OPEN_SHARDS = 64


class TokenStore:
    """A finished store, opened for reading. A document is addressed by (shard, document in the shard)."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.name = path.name
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.dtype = np.dtype(manifest.dtype)
        self.masked = manifest.masked
        self.vocab_size = manifest.vocab_size
        self.bos_id = manifest.special_tokens["bos"]
        self.eos_id = manifest.special_tokens["eos"]
        self.n_shards = len(manifest.shards)
        self.n_documents = sum(shard.n_documents for shard in manifest.shards)
        self.n_tokens = sum(shard.n_tokens for shard in manifest.shards)
        self.n_targets = self.n_tokens - self.n_documents
        """Tokens that a model learns to predict: in plain stores all but the first of each document."""
        if self.masked:
            self.n_targets = sum(shard.n_targets or 0 for shard in manifest.shards)
        self.document_ends = DocumentEnds.of([manifest])
        # Bounded: a long run reads thousands of shards, each a file descriptor and 12 bytes a document.
        self._documents = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._read_documents)
        self._tokens = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._map_tokens)

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """Open a store; the sizes of its files are compared with the manifest, their hashes only by `verify`.

        Raises:
            InputError: no manifest, one that cannot be read, a file that is missing or has another size.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        store_manifest.check_sizes(path, manifest)
        return cls(path, manifest)

    def lengths(self, shard: int) -> np.ndarray:
        """int32 (n_documents of the shard,) tokens."""
        return self._documents(shard)[0]

    def pointers(self, shard: int) -> np.ndarray:
        """int64 (n_documents of the shard,): where in the shard's tokens each document begins."""
        return self._documents(shard)[1]

    def tokens(self, shard: int, folder: Path | None = None) -> np.memmap:
        """All tokens of a shard (n_tokens,), memory-mapped, from the store or from the copy in `folder`.

        Raw ones: `masking.ids_of` and `masking.is_target` read them.
        """
        return self._tokens(shard) if folder is None else self._map_tokens(shard, folder)

    def document_tokens(self, shard: int, document: int) -> np.ndarray:
        """The tokens of a document (n_tokens,), raw as in `tokens`."""
        start = self.pointers(shard)[document]
        return self.tokens(shard)[start : start + self.lengths(shard)[document]]

    def document_info(self, shard: int, documents: np.ndarray) -> list[DocumentInfo]:
        """Ids and origins of documents of one shard, in the order asked for."""
        return read_documents(self.path / self._file(shard, ".docs.parquet"), np.asarray(documents))

    def sources(self, shard: int) -> pa.DictionaryArray:
        """The source (n_documents of the shard,) of every document."""
        return read_sources(self.path / self._file(shard, ".docs.parquet"))

    def sources_of(self, shard: int, documents: np.ndarray) -> set[str]:
        return {info.source for info in self.document_info(shard, documents)}

    def find(self, document_id: str) -> list[tuple[int, int]]:
        """All (shard, document) that carry an id."""
        found = []
        for shard in range(self.n_shards):
            candidates = find_id(self.path / self._file(shard, ".ids"), document_id)
            if len(candidates):
                infos = self.document_info(shard, candidates)
                pairs = zip(candidates.tolist(), infos, strict=True)
                found += [(shard, document) for document, info in pairs if info.id == document_id]
        return found

    def in_hash_range(self, shard: int, begin: int, end: int) -> np.ndarray:
        """bool (n_documents of the shard,): whether xxh3_64 of the document's id is in [begin, end).

        Raises:
            InputError: the file of the hashes is not what was written.
        """
        self.check_file(shard, ".ids")
        chosen = np.zeros(self.manifest.shards[shard].n_documents, dtype=bool)
        chosen[find_hashes(self.path / self._file(shard, ".ids"), begin, end)] = True
        return chosen

    def check_file(self, shard: int, suffix: str) -> None:
        """Hash a shard's file. Raises InputError where it differs from the manifest."""
        name = self._file(shard, suffix)
        if hash_files(self.path / name) != self.manifest.shards[shard].files[name]:
            raise InputError(f"{self.path / name} differs from the store's manifest: restore it")

    def count_repeated_ids(self) -> int:
        """Documents whose id another document of their shard has already."""
        paths = (self.path / self._file(shard, ".ids") for shard in range(self.n_shards))
        return sum(map(count_repeats, paths))

    def verify(self) -> None:
        """Read and hash every file.

        Raises:
            InputError: naming the files whose content is not what the manifest says.
        """
        entries = {name: entry for shard in self.manifest.shards for name, entry in shard.files.items()}
        damaged = [name for name, entry in entries.items() if hash_files(self.path / name) != entry]
        if Tokenizer.load(self.path / "tokenizer").fingerprint != self.manifest.tokenizer:
            damaged.append("tokenizer/")
        if damaged:
            raise InputError(f"{self.path}: {', '.join(damaged)} differ from the manifest; restore them")

    def _file(self, shard: int, suffix: str) -> str:
        return self.manifest.shards[shard].name + suffix

    def _map_tokens(self, shard: int, folder: Path | None = None) -> np.memmap:
        return np.memmap((folder or self.path) / self._file(shard, ".bin"), dtype=self.dtype, mode="r")

    def _read_documents(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        entry = self.manifest.shards[shard]
        path = self.path / self._file(shard, ".idx")
        index = read_index(path, entry.files[self._file(shard, ".bin")].bytes)
        if len(index.lengths) != entry.n_documents or index.dtype != self.dtype:
            raise InputError(f"{path} is not the index that {store_manifest.NAME} describes; restore it")
        return index.lengths, index.starts
