"""A token store's rows: packed once, kept in a folder beside the store, memory-mapped by everyone who reads rows.

`packing-KEY/` holds `shard-00000.rows` for each shard and `packing.json`, written last; KEY is a hash of the store's
fingerprint, the block size and the strategy, so another store or setting is another folder. The format is specified
in docs/formats.md, Packing.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from lit_gpt.bin_packing import Packing, pack_lengths
from lit_gpt.cli import InputError, progress

if TYPE_CHECKING:
    from lit_gpt.token_store import TokenStore

__all__ = ["PackedStore", "Packing", "RowTokens", "ShardPacking", "pack_lengths", "row_checksum"]

FORMAT = "packing-1"
_MANIFEST = "packing.json"
_TOKENS_AT_ONCE = 1 << 20  # while checksums are computed


class RowTokens(NamedTuple):
    """One row as read: `tokens` (sum(lengths) + n_pieces,) in the store's type, the pieces one after the other, each
    with the one token beyond its last prediction; `lengths` int32 (n_pieces,) in predictions."""

    tokens: np.ndarray
    lengths: np.ndarray


def row_checksum(tokens: np.ndarray) -> int:
    """xxh3_64 of a row's tokens as read (`RowTokens.tokens`), little-endian, in the store's type."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens))


@dataclass(frozen=True)
class ShardPacking(Packing):
    """A shard's rows with `checksums`, uint64 (n_rows,): `row_checksum` of each row when it was packed."""

    checksums: np.ndarray

    def read(self, row: int, tokens: np.ndarray, pointers: np.ndarray) -> RowTokens:
        """The tokens of a row, from the shard's `tokens` and its documents' `pointers`."""
        pieces = slice(self.row_offsets[row], self.row_offsets[row + 1])
        lengths = self.length[pieces]
        first = pointers[self.document[pieces]] + self.start[pieces]
        return RowTokens(_gather(tokens, first, lengths + 1), lengths)


class PackedStore:
    """A token store together with its rows. Made by `PackedStore.open`."""

    def __init__(self, store: "TokenStore", block_size: int, folder: Path, manifest: dict[str, Any]) -> None:
        self.store, self.block_size, self.folder = store, block_size, folder
        self._shards = manifest["shards"]
        self._opened: dict[int, ShardPacking] = {}
        self.rows_per_shard = np.array([shard["rows"] for shard in self._shards], dtype=np.int64)
        self.fingerprint = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(
        cls,
        store: "TokenStore",
        block_size: int,
        strategy: str = "best_fit",
        packing_dir: Path | str | None = None,
    ) -> "PackedStore":
        """Open the packing of `store`, building it first where there is none.

        Args:
            packing_dir: the folder to keep it in; by default the store's own.

        Raises:
            InputError: the folder cannot be written, or holds a packing that is damaged.
        """
        root = Path(packing_dir) if packing_dir else store.path
        identity = {
            "format": FORMAT,
            "store": store.fingerprint,
            "block_size": block_size,
            "strategy": strategy,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = root / f"packing-{key}"
        if not folder.exists():
            _build(store, block_size, strategy, identity, folder)
        return cls(store, block_size, folder, _read_manifest(folder, identity))

    @property
    def n_targets(self) -> int:
        """How many predictions one epoch holds."""
        return sum(shard["targets"] for shard in self._shards)

    @property
    def waste(self) -> float:
        """The share of slots that predict nothing."""
        return 1 - self.n_targets / max(1, int(self.rows_per_shard.sum()) * self.block_size)

    def shard(self, shard: int) -> ShardPacking:
        """The rows of one shard, memory-mapped; compared with their hash when first asked for.

        Raises:
            InputError: the file is not what was written.
        """
        if shard not in self._opened:
            path = self.folder / _shard_name(shard)
            described = self._shards[shard]
            if xxhash.xxh3_128_hexdigest(np.memmap(path, dtype=np.uint8, mode="r")) != described["xxh3_128"]:
                raise _damaged(self.folder, f"{path.name} is not what was written")
            self._opened[shard] = _map_shard(path, described["rows"], described["pieces"])
        return self._opened[shard]


def _build(
    store: "TokenStore", block_size: int, strategy: str, identity: dict[str, Any], folder: Path
) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
        shards = []
        for shard in progress(range(store.n_shards), description=f"packing {store.name}", unit="shard"):
            packing = pack_lengths(store.lengths(shard) - 1, block_size, strategy)
            tokens = np.asarray(store.tokens(shard))
            checksums = _checksums(packing, tokens, store.pointers(shard))
            shards.append(_write_shard(building / _shard_name(shard), packing, checksums))
        manifest = {**identity, "shards": shards}
        (building / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        try:
            os.rename(building, folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(building)  # another process was first
    except OSError as error:
        raise InputError(
            f"cannot write the packing to {folder.parent} ({error.strerror}): name a writable folder with packing_dir"
        ) from error


def _read_manifest(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        found = {name: manifest[name] for name in identity}
        sizes = [(folder / _shard_name(n)).stat().st_size for n in range(len(manifest["shards"]))]
        expected = [_shard_bytes(shard["rows"], shard["pieces"]) for shard in manifest["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from error
    if found != identity or sizes != expected:
        raise _damaged(folder, "its manifest and its contents disagree")
    return manifest


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(f"the packing in {folder} is damaged ({reason}): delete that folder, it is built again")


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05}.rows"


def _shard_bytes(rows: int, pieces: int) -> int:
    return 8 * (rows + 1) + 8 * rows + 3 * 4 * pieces


def _write_shard(path: Path, packing: Packing, checksums: np.ndarray) -> dict[str, Any]:
    arrays = [packing.row_offsets, checksums, packing.document, packing.start, packing.length]
    data = b"".join(
        array.astype(kind).tobytes()
        for array, kind in zip(arrays, ("<i8", "<u8", "<i4", "<i4", "<i4"), strict=True)
    )
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {
        "rows": packing.n_rows,
        "pieces": packing.length.size,
        "targets": int(packing.length.sum(dtype=np.int64)),
        "xxh3_128": xxhash.xxh3_128_hexdigest(data),
    }


def _map_shard(path: Path, rows: int, pieces: int) -> ShardPacking:
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    offset, arrays = 0, []
    for kind, count in (("<i8", rows + 1), ("<u8", rows), ("<i4", pieces), ("<i4", pieces), ("<i4", pieces)):
        end = offset + np.dtype(kind).itemsize * count
        arrays.append(np.asarray(mapped[offset:end]).view(kind))
        offset = end
    row_offsets, checksums, document, start, length = arrays
    return ShardPacking(row_offsets, document, start, length, checksums)


def _checksums(packing: Packing, tokens: np.ndarray, pointers: np.ndarray) -> np.ndarray:
    checksums = np.empty(packing.n_rows, dtype=np.uint64)
    ends = np.concatenate([[0], np.cumsum(packing.length + 1, dtype=np.int64)])[packing.row_offsets]
    row = 0
    while row < packing.n_rows:
        last = max(row + 1, int(np.searchsorted(ends, ends[row] + _TOKENS_AT_ONCE, side="right")) - 1)
        pieces = slice(packing.row_offsets[row], packing.row_offsets[last])
        first = pointers[packing.document[pieces]] + packing.start[pieces]
        gathered = _gather(tokens, first, packing.length[pieces] + 1)
        bounds = (ends[row : last + 1] - ends[row]).tolist()
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            checksums[row + number] = row_checksum(gathered[begin:end])
        row = last
    return checksums


def _gather(tokens: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The runs `tokens[first : first + count]`, one after the other."""
    ends = np.cumsum(count, dtype=np.int64)
    index = np.arange(ends[-1] if ends.size else 0) + np.repeat(first - ends + count, count)
    return tokens[index]
