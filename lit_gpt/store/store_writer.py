"""Write token stores: document by document, resumable after a kill, or from existing shards."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.files import cut_back, sync, write_atomically
from lit_gpt.hashed_files import hash_files
from lit_gpt.option_types import build
from lit_gpt.store import manifest as store_manifest
from lit_gpt.store import masking
from lit_gpt.store.manifest import SUFFIXES, ChatFormat, Dtype, Manifest, ShardEntry
from lit_gpt.store.shard_files import DocumentColumns, read_index, write_documents, write_index
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer

MAX_SHARD_TOKENS = 1 << 28
UNFINISHED = "unfinished."
"""Prefix of files that belong to the caller of a writer."""
_JOURNAL = ".journal"


class TokenStoreWriter:
    """Write a store document by document; `finish` completes it.

    Where a shard ends depends on the documents alone, so a writer resumed from a snapshot leaves the same
    bytes as one that was never stopped.
    """

    def __init__(
        self,
        folder: Path | str,
        tokenizer: Tokenizer,
        max_shard_tokens: int = MAX_SHARD_TOKENS,
        snapshot: dict[str, Any] | None = None,
        masked: bool = False,
    ) -> None:
        """Begin a store in a new or empty folder, or resume from a `snapshot`.

        Args:
            masked: the tokens to come are raw ones, int32, of which the sign bit is the mask.

        Raises:
            InputError: the folder holds files already, or not those of the snapshot.
        """
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.masked = masked
        self.dtype = masking.DTYPE if masked else tokenizer.dtype
        self.max_shard_tokens = max_shard_tokens
        self._closed: list[ShardEntry] = []
        self._open: _OpenShard | None = None
        self._spent_journals: list[Path] = []
        if snapshot is not None:
            self._closed = [build(ShardEntry, entry) for entry in snapshot["closed"]]
            if snapshot["open"] is not None:
                self._open = _OpenShard(self.folder, self._next_name(), snapshot["open"])
            self._remove_later_files()
        elif any(not path.name.startswith(UNFINISHED) for path in self.folder.glob("*")):
            raise InputError(f"{folder} is not empty; give another folder, or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def n_documents(self) -> int:
        n_open = len(self._open.journal.columns.ids) if self._open else 0
        return n_open + sum(shard.n_documents for shard in self._closed)

    def add(self, document_id: str, source: str, source_line: int, tokens: np.ndarray) -> None:
        """Append a document (n_tokens,) of at least one token."""
        self.add_many([document_id], source, [source_line], np.array([len(tokens)]), np.asarray(tokens))

    def add_many(
        self,
        ids: list[str],
        source: str,
        source_lines: list[int],
        lengths: np.ndarray,
        tokens: np.ndarray,
    ) -> None:
        """Append documents of one source. A shard that the next one would overfill is closed first.

        Args:
            lengths: (n_documents,) tokens.
            tokens: (sum of lengths,) the documents one after another.
        """
        tokens = tokens.astype(self.dtype, copy=False)
        bounds = np.append(0, np.cumsum(lengths, dtype=np.int64))
        first = 0
        while first < len(ids):
            self._open = self._open or _OpenShard(self.folder, self._next_name())
            room = self.max_shard_tokens - self._open.n_bytes // tokens.itemsize
            last = int(np.searchsorted(bounds, bounds[first] + room, side="right")) - 1
            if last <= first and self._open.n_bytes:
                self.close_shard()
                continue
            last = max(last, first + 1)  # a document longer than a shard has one of its own
            self._open.write(tokens[bounds[first] : bounds[last]])
            self._open.journal.append(
                ids[first:last], source, source_lines[first:last], lengths[first:last].tolist()
            )
            first = last

    def snapshot(self) -> dict[str, Any]:
        """Sync everything and return the state to resume from, as JSON.

        The caller stores it before the next call, which removes journals that this state no longer needs.
        """
        for journal in self._spent_journals:
            journal.unlink(missing_ok=True)
        self._spent_journals = [self.folder / (shard.name + _JOURNAL) for shard in self._closed]
        state = self._open.sync() if self._open else None
        return {"closed": [asdict(shard) for shard in self._closed], "open": state}

    def close_shard(self) -> None:
        if self._open is None:
            return
        self._open.finish(self.dtype)
        self._closed.append(shard_entry(self.folder, self._open.name, self.tokenizer, self.masked))
        self._open = None

    def discard(self) -> None:
        """Remove what was written, so that the folder can be begun anew."""
        self._closed, self._open = [], None
        self._remove_later_files()

    def finish(self, provenance: dict[str, Any], chat: ChatFormat | None = None) -> TokenStore:
        """Close the last shard and make the folder a store.

        Args:
            provenance: of the documents.
            chat: of a masked store that holds conversations.

        Raises:
            InputError: no document was added.
        """
        if not self.n_documents:
            raise InputError(f"no document for {self.folder}; the input holds none that can be used")
        self.close_shard()
        for journal in self.folder.glob("*" + _JOURNAL):
            journal.unlink()
        write_manifest(self.folder, self.tokenizer, self.dtype, self._closed, provenance, self.masked, chat)
        return TokenStore.open(self.folder)

    def _next_name(self) -> str:
        return f"shard-{len(self._closed):05d}"

    def _remove_later_files(self) -> None:
        """Remove what was written of shards after the snapshot."""
        known = {name for shard in self._closed for name in shard.files}
        if self._open:
            known |= {self._open.name + ".bin", self._open.name + _JOURNAL}
        for path in self.folder.glob("shard-*"):
            if path.name not in known:
                path.unlink()


class _OpenShard:
    """A shard that is being written: its tokens, and in a journal its documents."""

    def __init__(self, folder: Path, name: str, state: dict[str, int] | None = None) -> None:
        state = state or {"bin": 0, "journal": 0}
        self.name = name
        self.base = folder / name
        self.journal = _DocumentJournal(folder / (name + _JOURNAL), state["journal"])
        self.n_bytes = state["bin"]
        self._bin = cut_back(folder / (name + ".bin"), self.n_bytes)

    def write(self, tokens: np.ndarray) -> None:
        self.n_bytes += self._bin.write(tokens.tobytes())

    def sync(self) -> dict[str, int]:
        """Sync both files; returns their sizes."""
        return {"bin": sync(self._bin), "journal": self.journal.sync()}

    def finish(self, dtype: np.dtype) -> None:
        sync(self._bin)
        self._bin.close()
        self.journal.close()
        lengths = np.array(self.journal.columns.lengths, dtype=np.int32)
        write_index(self.base.with_suffix(".idx"), dtype, lengths)
        write_documents(self.base, [self.journal.columns])


class _DocumentJournal:
    """Documents of the shard that is being written: columns in memory, the same as JSON lines on disk."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the journal, cut back to `size` bytes."""
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._source_lines: list[int] = []
        self._lengths: list[int] = []
        self._file = cut_back(path, size)
        self._file.seek(0)
        for line in self._file:
            self._extend(*json.loads(line))

    @property
    def columns(self) -> DocumentColumns:
        return DocumentColumns(self._ids, self._sources, self._source_lines, self._lengths)

    def append(self, ids: list[str], source: str, source_lines: list[int], lengths: list[int]) -> None:
        entry = (ids, source, source_lines, lengths)
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._extend(*entry)

    def sync(self) -> int:
        return sync(self._file)

    def close(self) -> None:
        self._file.close()

    def _extend(self, ids: list[str], source: str, source_lines: list[int], lengths: list[int]) -> None:
        self._ids += ids
        self._sources += [source] * len(ids)
        self._source_lines += source_lines
        self._lengths += lengths


def shard_entry(folder: Path, name: str, tokenizer: Tokenizer, masked: bool = False) -> ShardEntry:
    """Sync, count and hash the files of a complete shard."""
    data = folder / f"{name}.bin"
    dtype, lengths, starts = read_index(folder / f"{name}.idx", data.stat().st_size)
    tokens = np.memmap(data, dtype=dtype, mode="r")
    filled = lengths > 0
    ends = starts[filled] + lengths[filled]
    first, last = tokens[starts[filled]], tokens[ends - 1]
    n_targets = None
    if masked:
        n_targets = sum(sign * int(masking.is_target(raw).sum()) for sign, raw in ((1, tokens), (-1, first)))
    return ShardEntry(
        name=name,
        n_documents=len(lengths),
        n_tokens=int(lengths.sum(dtype=np.int64)),
        n_with_bos=int(np.count_nonzero(masking.ids_of(first) == tokenizer.bos_id)),
        n_with_eos=int(np.count_nonzero(masking.ids_of(last) == tokenizer.eos_id)),
        files={name + suffix: hash_files(folder / (name + suffix), durable=True) for suffix in SUFFIXES},
        n_targets=n_targets,
    )


def write_manifest(
    folder: Path,
    tokenizer: Tokenizer,
    dtype: np.dtype,
    shards: list[ShardEntry],
    provenance: dict[str, Any],
    masked: bool = False,
    chat: ChatFormat | None = None,
) -> None:
    """Make a folder of complete shards a store: the tokenizer's files, then the manifest, last."""
    target = folder / "tokenizer"
    target.mkdir(exist_ok=True)
    for file in tokenizer.files():
        shutil.copyfile(file, target / file.name)
    if chat is not None:
        (target / "chat_template.jinja").write_text(chat.template, encoding="utf-8")
    manifest = Manifest(
        dtype=cast(Dtype, dtype.name),
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        special_tokens={"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id},
        shards=shards,
        provenance=provenance,
        masked=masked,
        chat=chat,
    )
    write_atomically(folder / store_manifest.NAME, manifest.to_json())
