"""The token store: a folder of tokenized documents, written once, then only read.

    shard-00000.bin           the tokens of all documents, one after another (uint16 or int32, little-endian)
    shard-00000.idx           where each document lies, in Megatron-LM's IndexedDataset format
    shard-00000.docs.parquet  one line a document: id, source, source_line, n_tokens
    shard-00000.ids           sorted hashes of the ids
    tokenizer/                a copy of the tokenizer's files
    manifest.json             written last: a folder without it is not a store

docs/formats.md is the specification.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lit_gpt import store_manifest
from lit_gpt.cli import InputError
from lit_gpt.document_table import (
    DocumentInfo,
    find_id,
    read_documents,
    read_sources,
    write_documents,
    write_ids,
)
from lit_gpt.megatron_index import read_index, write_index
from lit_gpt.store_manifest import FileEntry, Manifest, ShardEntry
from lit_gpt.tokenizer import Tokenizer

SUFFIXES = (".bin", ".idx", ".docs.parquet", ".ids")
MAX_SHARD_TOKENS = 1 << 28


class TokenStore:
    """A finished store, opened for reading. A document is addressed by (shard, document in the shard)."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.name = path.name
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.dtype = np.dtype(manifest.dtype)
        self.vocab_size = manifest.vocab_size
        self.bos_id = manifest.special_tokens["bos"]
        self.eos_id = manifest.special_tokens["eos"]
        self.n_shards = len(manifest.shards)
        self.n_documents = sum(shard.n_documents for shard in manifest.shards)
        self.n_tokens = sum(shard.n_tokens for shard in manifest.shards)
        self._bounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._tokens: dict[int, np.memmap] = {}

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
        """All tokens of a shard (n_tokens,), memory-mapped, from the store or from the copy in `folder`."""
        if folder is not None:
            return np.memmap(folder / self._file(shard, ".bin"), dtype=self.dtype, mode="r")
        if shard not in self._tokens:
            self._tokens[shard] = np.memmap(self.path / self._file(shard, ".bin"), dtype=self.dtype, mode="r")
        return self._tokens[shard]

    def document_tokens(self, shard: int, document: int) -> np.ndarray:
        """(n_tokens,) of one document."""
        start = self.pointers(shard)[document]
        return self.tokens(shard)[start : start + self.lengths(shard)[document]]

    def document_info(self, shard: int, documents: np.ndarray) -> list[DocumentInfo]:
        """Ids and origins of documents of one shard, in the order asked for."""
        return read_documents(self.path / self._file(shard, ".docs.parquet"), np.asarray(documents))

    def sources(self, shard: int) -> pa.DictionaryArray:
        """The source (n_documents of the shard,) of every document."""
        return read_sources(self.path / self._file(shard, ".docs.parquet"))

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

    def verify(self) -> None:
        """Read and hash every file.

        Raises:
            InputError: naming the files whose content is not what the manifest says.
        """
        entries = {name: entry for shard in self.manifest.shards for name, entry in shard.files.items()}
        damaged = [name for name, entry in entries.items() if FileEntry.of(self.path / name) != entry]
        if damaged:
            raise InputError(f"{self.path}: {', '.join(damaged)} differ from the manifest; restore them")

    def _file(self, shard: int, suffix: str) -> str:
        return self.manifest.shards[shard].name + suffix

    def _documents(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._bounds:
            entry = self.manifest.shards[shard]
            path = self.path / self._file(shard, ".idx")
            index = read_index(path, entry.files[self._file(shard, ".bin")].bytes)
            if len(index.lengths) != entry.n_documents or index.dtype != self.dtype:
                raise InputError(f"{path} is not the index that {store_manifest.NAME} speaks of; restore it")
            self._bounds[shard] = (index.lengths, index.starts)
        return self._bounds[shard]


class TokenStoreWriter:
    """Writes a store document by document; `finish` makes it one."""

    def __init__(
        self, folder: Path | str, tokenizer: Tokenizer, max_shard_tokens: int = MAX_SHARD_TOKENS
    ) -> None:
        self.folder = Path(folder)
        if (self.folder / store_manifest.NAME).exists():
            raise InputError(f"{folder} holds a token store already; give another folder or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = tokenizer
        self.max_shard_tokens = max_shard_tokens
        self._closed: list[ShardEntry] = []
        self._open_shard()

    def add(self, document_id: str, source: str, source_line: int, tokens: np.ndarray) -> None:
        """Append a document of at least one token. A shard that it would overfill is closed first."""
        if self._lengths and self._n_tokens + len(tokens) > self.max_shard_tokens:
            self._close_shard()
            self._open_shard()
        self._bin.write(np.asarray(tokens).astype(self.tokenizer.dtype, copy=False).tobytes())
        self._documents.append((document_id, source, source_line))
        self._lengths.append(len(tokens))
        self._n_tokens += len(tokens)

    def finish(self, provenance: dict[str, Any]) -> TokenStore:
        """Close the last shard, copy the tokenizer's files and write the manifest."""
        if not self._lengths:
            raise InputError(f"no document for {self.folder}: nothing that could be tokenized")
        self._close_shard()
        write_manifest(self.folder, self.tokenizer, self._closed, provenance)
        return TokenStore.open(self.folder)

    def _open_shard(self) -> None:
        self._name = f"shard-{len(self._closed):05d}"
        self._bin = (self.folder / f"{self._name}.bin").open("wb")
        self._documents: list[tuple[str, str, int]] = []
        self._lengths: list[int] = []
        self._n_tokens = 0

    def _close_shard(self) -> None:
        _sync(self._bin)
        self._bin.close()
        lengths = np.array(self._lengths, dtype=np.int32)
        base = self.folder / self._name
        write_index(base.with_suffix(".idx"), self.tokenizer.dtype, lengths)
        ids, sources, lines = zip(*self._documents, strict=True)
        write_documents(base.with_suffix(".docs.parquet"), ids, sources, lines, lengths)
        write_ids(base.with_suffix(".ids"), ids)
        self._closed.append(shard_entry(self.folder, self._name, self.tokenizer))


def shard_entry(folder: Path, name: str, tokenizer: Tokenizer) -> ShardEntry:
    """Count and hash a shard whose files are complete."""
    data = folder / f"{name}.bin"
    dtype, lengths, starts = read_index(folder / f"{name}.idx", data.stat().st_size)
    tokens = np.memmap(data, dtype=dtype, mode="r")
    filled = lengths > 0
    ends = starts[filled] + lengths[filled]
    return ShardEntry(
        name=name,
        n_documents=len(lengths),
        n_tokens=int(lengths.sum(dtype=np.int64)),
        n_with_bos=int(np.count_nonzero(tokens[starts[filled]] == tokenizer.bos_id)),
        n_with_eos=int(np.count_nonzero(tokens[ends - 1] == tokenizer.eos_id)),
        files={name + suffix: FileEntry.of(folder / (name + suffix)) for suffix in SUFFIXES},
    )


def write_manifest(
    folder: Path, tokenizer: Tokenizer, shards: list[ShardEntry], provenance: dict[str, Any]
) -> None:
    """Make a folder of complete shards a store: tokenizer files, then the manifest, atomically and last."""
    target = folder / "tokenizer"
    target.mkdir(exist_ok=True)
    for file in tokenizer.files():
        shutil.copyfile(file, target / file.name)
    manifest = Manifest(
        dtype=tokenizer.dtype.name,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        special_tokens={"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id},
        shards=shards,
        provenance=provenance,
    )
    temporary = folder / f"{store_manifest.NAME}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(manifest.to_json())
        _sync(stream)
    os.replace(temporary, folder / store_manifest.NAME)


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
