"""Find the pairs of documents that may be near duplicates, in bounded memory, by sorted runs on disk.

    stage 1, for each part of the input    SignedWriter    write shingles, and band keys in runs sorted by key
    stage 2, for each share of the keys    find_pairs      merge runs; documents with a common key are pairs
    stages 3 to 5                          near_duplicates.py

Documents are numbered through all parts, and a pair is (document, earlier document). The pairs depend neither
on the number of parts nor on that of shares. Files, little endian, `part` and `share` of five digits:

    signatures/<part>.*         as in dedup_index.py: (band key, hash of the set of shingles) of each band
    shingles/<part>.*           as in items.py: the different shingles of each document, sorted, uint32
    pairs/<share>.bin           PAIRs, sorted by document in each run
    pairs/<share>.bounds.npy    int64 (runs, blocks + 1): start in the file of each block of each run
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.duplicates.dedup_index import (
    Records,
    SignatureWriter,
    bucket_ranges,
    in_chunks,
    part_starts,
    records_between,
    save_array,
)
from data_prep.duplicates.items import ItemWriter
from data_prep.duplicates.shingles import Signed
from lit_gpt.files import create

PAIR = np.dtype([("document", "<u8"), ("like", "<u8")])
PARTNERS = 8
"""A document is compared with so many of those that share a key: the first ones, copies left out. To compare
all would be quadratic in the pages of a template."""
CHUNK = 1 << 22
"""Records of stage 2 to hold in memory at a time, about 500 MB."""
BLOCK = 1 << 18
"""Documents whose pairs stage 3 holds in memory: at most PARTNERS * bands * 16 bytes each, rarely so many."""


class SignedWriter:
    """Stage 1: writes the shingles and the band keys of a part's documents in input order."""

    def __init__(self, folder: Path, part: int) -> None:
        self._keys = SignatureWriter(folder / "signatures", part)
        self._shingles = ItemWriter(folder / "shingles", part)

    def add(self, signed: Signed) -> None:
        hashes = np.broadcast_to(signed.set_hashes[:, None], signed.keys.shape)
        self._keys.add_bytes(np.stack((signed.keys, hashes), axis=2).tobytes())
        self._shingles.add(signed.shingles.data, signed.sizes)

    def close(self) -> None:
        self._shingles.close()
        self._keys.close()


def document_starts(folder: Path, n_parts: int, bands: int) -> np.ndarray:
    """int64 (n_parts + 1,): number of each part's first document, then the total."""
    return part_starts(folder / "signatures", n_parts) // bands


def block_edges(n_documents: int, n_shares: int) -> np.ndarray:
    """int64 (blocks + 1,): number of each block's first document, then the total."""
    size = min(max(-(-n_documents // n_shares), 1), BLOCK)
    return np.append(np.arange(0, n_documents, size), n_documents)


def find_pairs(folder: Path, n_parts: int, bands: int, share: int, n_shares: int) -> None:
    """Stage 2: writes the pairs of documents with a common key, for one share of the keys."""
    signatures, pairs = folder / "signatures", folder / "pairs"
    starts = part_starts(signatures, n_parts)
    edges = block_edges(int(starts[-1]) // bands, n_shares)
    pairs.mkdir(exist_ok=True)
    bounds, n_pairs = [], 0
    with create(pairs / f"{share:05d}.bin") as file:
        for first, last in bucket_ranges(signatures, n_parts, n_shares)[share::n_shares]:
            for found in _pairs_between(signatures, starts, bands, first, last):
                found.sort(order="document")
                file.write(found.view(np.uint8).data)
                bounds.append(np.searchsorted(found["document"], edges) + n_pairs)
                n_pairs += len(found)
    save_array(pairs / f"{share:05d}.bounds.npy", np.array(bounds, dtype=np.int64).reshape(-1, len(edges)))


def _pairs_between(
    signatures: Path, starts: np.ndarray, bands: int, first: int, last: int
) -> Iterator[np.ndarray]:
    """PAIRs of the records with first <= prefix of the key < last."""
    of_documents = (
        Records(records.high, records.low, records.number // bands)
        for records in records_between(signatures, starts, first, last)
    )
    return in_chunks(of_documents, CHUNK, _pair_up)


def _pair_up(parts: list[Records]) -> tuple[list[Records], np.ndarray]:
    """Pair each record with the partners of its key: the first PARTNERS different sets of shingles.

    A copy of a partner is paired with that one only. Records of a key must be in the order of their numbers.

    Returns:
        The records that stand for these when more follow, and the PAIRs.
    """
    records = Records.join(parts)
    records = records[np.argsort(records.high, kind="stable")]
    is_new = np.ones(len(records), dtype=bool)
    is_new[1:] = records.high[1:] != records.high[:-1]
    is_alone = is_new.copy()
    is_alone[:-1] &= is_new[1:]
    alone, records, is_new = records[is_alone], records[~is_alone], is_new[~is_alone]
    group = np.cumsum(is_new) - 1
    partner = np.sort(_first_of_each(group, records.low))
    begins = np.searchsorted(group[partner], np.arange(int(is_new.sum()) + 1))
    partner = partner[np.arange(len(partner)) - begins[group[partner]] < PARTNERS]
    begins = np.searchsorted(group[partner], np.arange(len(begins)))
    counts = np.diff(begins)
    columns, is_copy = [], np.zeros(len(records), dtype=bool)
    for column in range(PARTNERS):
        later = np.flatnonzero(column < counts[group])
        earlier = partner[begins[group[later]] + column]
        is_earlier = records.number[earlier] < records.number[later]
        later, earlier = later[is_earlier], earlier[is_earlier]
        is_same = records.low[earlier] == records.low[later]
        is_copy[later[is_same]] = True
        columns.append((later, earlier, is_same))
    pairs = []
    for later, earlier, is_same in columns:
        takes_part = is_same | ~is_copy[later]
        pair = np.empty(int(takes_part.sum()), PAIR)
        pair["document"] = records.number[later[takes_part]]
        pair["like"] = records.number[earlier[takes_part]]
        pairs.append(pair)
    return [alone, records[partner]], np.concatenate(pairs)


def _first_of_each(group: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Positions of the first of equal (group, low)."""
    order = np.lexsort((low, group))
    is_first = (np.diff(group[order], prepend=-1) != 0) | (np.diff(low[order], prepend=np.uint64(0)) != 0)
    return order[is_first]
