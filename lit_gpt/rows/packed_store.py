"""A token store's rows: packed once, kept in a folder, memory-mapped by everyone who reads rows.

`packing-KEY/` lies in the store, or in `packing_dir` where that cannot be written; KEY is a hash of the
store's fingerprint, the block size, the strategy and, where only a share of the documents is read, that
share: another store or setting is another folder. It holds `shard-00000.rows` for each shard (rows.py) and
`packing.json`, which has their hashes. The documents of a masked store, conversations, are never cut.
docs/formats.md, Packing, is the specification.
"""

import dataclasses
import errno
import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.build_once import build_once
from lit_gpt.cli import InputError, progress
from lit_gpt.files import read_bounded, write_atomically
from lit_gpt.rows.bin_packing import covers, pack_lengths
from lit_gpt.rows.packable import check_masked, check_shard, n_targets_of
from lit_gpt.rows.rows import Rows, ShardEntry, counted_targets, read_shard, row_checksums, write_shard
from lit_gpt.rows.store_entry import DocumentShare, StoreEntry
from lit_gpt.store.token_store import TokenStore

FORMAT, MASKED_FORMAT = "packing-1", "packing-masked-1"
MANIFEST = "packing.json"
_OPEN_SHARDS = 64  # each holds a file descriptor


class PackedStore:
    """A token store and its rows, as `PackedStore.open` gives them."""

    def __init__(self, store: TokenStore, block_size: int, folder: Path, manifest: dict[str, Any]) -> None:
        self.store = store
        self.block_size = block_size
        self.share = DocumentShare.parse(manifest["share"]) if "share" in manifest else None
        self.folder = folder
        self.fingerprint: str = manifest["fingerprint"]
        """sha256 over all that defines the rows, and with their checksums the tokens in them."""
        self.shards = [ShardEntry(**entry) for entry in manifest["shards"]]
        self.rows_per_shard = np.array([entry.rows for entry in self.shards], dtype=np.int64)
        self._open_shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._read_shard)

    @classmethod
    def open(
        cls,
        store: TokenStore,
        block_size: int,
        strategy: str = "best_fit",
        packing_dir: Path | str | None = None,
        share: DocumentShare | None = None,
    ) -> "PackedStore":
        """Open the packing of `store`; build it first if there is none.

        Of several processes that open it together one builds and the others wait. After a kill at any moment
        there is either no packing or a complete one.

        Args:
            block_size: targets in a row.
            strategy: best_fit, concat or one_per_row, see `pack_lengths`.
            packing_dir: the folder to keep packings in; None: the store's own.
            share: the documents that have rows; None: all.

        Raises:
            InputError: the folder cannot be written, the packing in it is damaged, or the store is.
        """
        identity, folder = _place(store, block_size, strategy, packing_dir, share)
        if not folder.exists():
            pack_lengths(np.zeros(0, np.int64), block_size, strategy)  # refuses before anything is written
            check_masked(store, block_size, strategy, share)
            try:
                build_once(folder, lambda building: _build(store, identity, building))
            except OSError as error:
                raise InputError(
                    f"cannot build the packing of {store.path} in {folder.parent} ({error}): make it "
                    "writable and roomy, or give another folder as packing_dir"
                ) from error
        return cls(store, block_size, folder, _read_manifest(folder, identity))

    @classmethod
    def find(
        cls,
        store: TokenStore,
        block_size: int,
        strategy: str = "best_fit",
        packing_dir: Path | str | None = None,
        share: DocumentShare | None = None,
    ) -> "PackedStore | None":
        """The packing of `store` if there is one; nothing is built. Raises InputError as `open`."""
        identity, folder = _place(store, block_size, strategy, packing_dir, share)
        return cls(store, block_size, folder, _read_manifest(folder, identity)) if folder.exists() else None

    @property
    def name(self) -> str:
        """The store's folder and the share, for messages."""
        return str(StoreEntry(self.store.path, self.share))

    @property
    def n_targets(self) -> int:
        """How many targets an epoch has; masked ones do not count."""
        return sum(entry.targets if entry.counted is None else entry.counted for entry in self.shards)

    @property
    def waste(self) -> float:
        """The share of slots that no document fills."""
        slots = int(self.rows_per_shard.sum()) * self.block_size
        return 1 - sum(entry.targets for entry in self.shards) / slots if slots else 0.0

    def rows(self, shard: int) -> Rows:
        """The rows of one shard, memory-mapped; hashed each time its file is opened.

        Raises:
            InputError: it is not the file that was written.
        """
        return self._open_shard(shard)[0]

    def checksums(self, shard: int) -> np.ndarray:
        """uint64 (n_rows,): of the tokens of each row of a shard when it was packed. Raises as `rows`."""
        return self._open_shard(shard)[1]

    def loss_targets(self, shard: int) -> np.ndarray:
        """int64 (n_rows,): the targets of each row that count, all of them in a plain store."""
        return self._open_shard(shard)[2].targets_per_row

    def loss_targets_of(self, shard: int, documents: np.ndarray) -> np.ndarray:
        """The same of documents of a masked store, int64 (k,); each is one segment, or in no row."""
        counted = self._open_shard(shard)[2]
        of_all = np.zeros(len(self.store.lengths(shard)), np.int64)
        of_all[counted.document] = counted.length
        return of_all[documents]

    def verify(self) -> None:
        """Read all: each target of the store is in exactly one row, each row's tokens have its checksum.

        Of a masked store also: each target counts that the mask says.

        Raises:
            InputError: naming the shard where that does not hold.
        """
        for shard in progress(range(self.store.n_shards), description="verifying", unit="shard"):
            rows = self.rows(shard)
            if not covers(rows, n_targets_of(self.store, shard, self.share), self.block_size):
                with _damage_named(self.folder):
                    raise ValueError(f"shard {shard} has not each target exactly once")
            tokens, pointers = self.store.tokens(shard), self.store.pointers(shard)
            checksums = row_checksums(rows, tokens, pointers)
            differing = np.flatnonzero(checksums != self.checksums(shard))
            if differing.size:
                raise InputError(
                    f"{self.store.path}: {differing.size} rows of shard {shard}, the first of them row "
                    f"{differing[0]}, are not what was packed: restore the shard"
                )
            counted = self._open_shard(shard)[2].length
            if self.store.masked and not np.array_equal(counted, counted_targets(rows, tokens, pointers)):
                with _damage_named(self.folder):
                    raise ValueError(f"shard {shard} has not the targets that the mask says")

    def _read_shard(self, shard: int) -> tuple[Rows, np.ndarray, Rows]:
        """Rows, checksums, and the rows once more, of each segment only the targets that count."""
        with _damage_named(self.folder):
            rows, checksums, counted = read_shard(self.folder / _file_name(shard), self.shards[shard])
        return rows, checksums, dataclasses.replace(rows, length=counted) if self.store.masked else rows


def _place(
    store: TokenStore,
    block_size: int,
    strategy: str,
    packing_dir: Path | str | None,
    share: DocumentShare | None,
) -> tuple[dict[str, Any], Path]:
    """What a packing is of, and its folder."""
    identity: dict[str, Any] = {"format": MASKED_FORMAT if store.masked else FORMAT}
    identity["store"] = store.fingerprint
    identity |= {"block_size": block_size, "strategy": strategy}
    if share is not None:  # packings of all documents keep the keys they had before there were shares
        identity["share"] = str(share)
    key = _hash(identity)[:16]
    return identity, (Path(packing_dir) if packing_dir else store.path) / f"packing-{key}"


def _build(store: TokenStore, identity: dict[str, Any], folder: Path) -> None:
    share = DocumentShare.parse(identity["share"]) if "share" in identity else None
    entries = []
    for shard in progress(range(store.n_shards), description=f"packing {store.name}", unit="shard"):
        check_shard(store, shard)
        n_targets = n_targets_of(store, shard, share)
        rows = pack_lengths(n_targets, identity["block_size"], identity["strategy"])
        tokens, pointers = store.tokens(shard), store.pointers(shard)
        counted = counted_targets(rows, tokens, pointers) if store.masked else None
        checksums = row_checksums(rows, tokens, pointers)
        entries.append(write_shard(folder / _file_name(shard), rows, checksums, counted))
    shards = [{name: value for name, value in vars(entry).items() if value is not None} for entry in entries]
    manifest = {**identity, "shards": shards}
    manifest["fingerprint"] = _hash(manifest)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))


def _read_manifest(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    with _damage_named(folder):
        manifest = json.loads(read_bounded(folder / MANIFEST).decode("utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"{MANIFEST} holds no object")
        fingerprint = manifest.pop("fingerprint", None)
        if _hash(manifest) != fingerprint or any(manifest.get(name) != identity[name] for name in identity):
            raise ValueError(f"{MANIFEST} is not what was written")
        for shard, entry in enumerate(manifest["shards"]):
            if (folder / _file_name(shard)).stat().st_size != entry["bytes"]:
                raise ValueError(f"{_file_name(shard)} is cut short")
    return {**manifest, "fingerprint": fingerprint}


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """What is missing or not as it was written is damage; what the machine refuses to read is not.

    Raises:
        InputError: either.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError) as error:
        raise InputError(
            f"the packing in {folder} is damaged ({error}): delete that folder, it is built again"
        ) from error
    except OSError as error:
        hint = "; raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}{hint}") from error


def _file_name(shard: int) -> str:
    return f"shard-{shard:05d}.rows"


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
