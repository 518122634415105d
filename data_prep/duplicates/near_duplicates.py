"""Decide which documents are near duplicates, given the pairs that minhash_index.py has found.

    stage 3, for each share of documents   compare_pairs   keep the pairs whose Jaccard similarity is enough
    stage 4, once                          choose          drop documents that resemble one that stays
    stage 5, for each part of the input    Dropped         look up the dropped documents of the part

A document is dropped if an earlier one that stays is similar. So for every dropped document there is one, and
no two that stay are known to be similar. Files, little endian, `block` of five digits:

    similar/<block>.bin         SIMILAR pairs of a block of documents, sorted
    dropped.bin                 SIMILAR pairs of the dropped documents, one each, sorted
"""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.duplicates.items import Items
from data_prep.duplicates.minhash_index import PAIR, block_edges, document_starts
from lit_gpt.files import create, replacing

SIMILAR = np.dtype([*PAIR.descr, ("similarity", "<f4")])
CHUNK = 1 << 20
"""Pairs that stages 4 and 5 hold in memory at a time."""


def compare_pairs(
    folder: Path, n_parts: int, bands: int, min_similarity: float, share: int, n_shares: int
) -> dict[str, int]:
    """Stage 3: writes the pairs of the share's documents that are similar enough, by all their shingles."""
    starts = document_starts(folder, n_parts, bands)
    edges = block_edges(int(starts[-1]), n_shares)
    (folder / "similar").mkdir(exist_ok=True)
    shingles = Items(folder / "shingles", starts, unit=4)
    n_pairs = n_similar = 0
    for block in range(len(edges) - 1)[share::n_shares]:
        pairs = _pairs_of_block(folder / "pairs", n_shares, block)
        similar = np.empty(len(pairs), SIMILAR)
        similar["document"], similar["like"] = pairs["document"], pairs["like"]
        similar["similarity"] = _similarities(shingles, pairs, min_similarity)
        similar = similar[similar["similarity"] > 0]
        n_pairs, n_similar = n_pairs + len(pairs), n_similar + len(similar)
        with create(folder / "similar" / f"{block:05d}.bin") as file:
            file.write(similar.view(np.uint8).data)
    shingles.close()
    return {"pairs": n_pairs, "similar_pairs": n_similar}


def _pairs_of_block(pairs: Path, n_shares: int, block: int) -> np.ndarray:
    """The different PAIRs of a block of documents, sorted."""
    found = [np.empty(0, PAIR)]
    for share in range(n_shares):
        bounds = np.load(pairs / f"{share:05d}.bounds.npy", mmap_mode="r")
        with (pairs / f"{share:05d}.bin").open("rb") as file:
            for low, high in bounds[:, block : block + 2].tolist():
                file.seek(low * PAIR.itemsize)
                found.append(np.fromfile(file, PAIR, high - low))
    joined = np.concatenate(found)
    joined = joined[np.lexsort((joined["like"], joined["document"]))]
    is_new = np.ones(len(joined), dtype=bool)
    is_new[1:] = joined[1:] != joined[:-1]
    return joined[is_new]


def _similarities(shingles: Items, pairs: np.ndarray, min_similarity: float) -> np.ndarray:
    """float32 (pairs,): the Jaccard similarity of each pair, 0 if it is below the minimum."""
    similarities = np.zeros(len(pairs), np.float32)
    last, one = -1, np.empty(0, np.uint32)
    for number, (document, like) in enumerate(pairs.tolist()):
        one_bounds, other_bounds = shingles.bounds(document), shingles.bounds(like)
        sizes = sorted((one_bounds[2] - one_bounds[1], other_bounds[2] - other_bounds[1]))
        if sizes[0] == 0 or sizes[0] < min_similarity * sizes[1]:
            continue  # cannot be similar enough
        if document != last:
            last, one = document, np.frombuffer(shingles.read(*one_bounds), "<u4")
        both = np.concatenate((one, np.frombuffer(shingles.read(*other_bounds), "<u4")))
        both.sort()
        n_common = np.count_nonzero(both[1:] == both[:-1])
        similarity = n_common / (len(both) - n_common)
        if similarity >= min_similarity:
            similarities[number] = similarity
    return similarities


def choose(folder: Path, n_parts: int, bands: int, n_shares: int) -> dict[str, int]:
    """Stage 4: goes through the documents in order and drops each that is like an earlier one that stays.

    A document that equals a dropped one is dropped: both are like the same one. Memory: a byte a document.
    """
    n_documents = int(document_starts(folder, n_parts, bands)[-1])
    is_dropped = bytearray(n_documents)
    n_dropped = 0
    with replacing(folder / "dropped.bin") as output:
        for block in range(len(block_edges(n_documents, n_shares)) - 1):
            with (folder / "similar" / f"{block:05d}.bin").open("rb") as file:
                while len(similar := np.fromfile(file, SIMILAR, CHUNK)):
                    chosen = []
                    for number, (document, like, similarity) in enumerate(similar.tolist()):
                        if not is_dropped[document] and (similarity == 1 or not is_dropped[like]):
                            is_dropped[document] = 1
                            chosen.append(number)
                    output.write(similar[chosen].view(np.uint8).data)
                    n_dropped += len(chosen)
    return {"dropped": n_dropped}


class Dropped:
    """Stage 5: the dropped documents among those from number `first` to `last` - 1."""

    def __init__(self, folder: Path, first: int, last: int) -> None:
        path = folder / "dropped.bin"
        is_empty = path.stat().st_size == 0
        self._all = np.empty(0, SIMILAR) if is_empty else np.memmap(path, SIMILAR, "r")
        self._documents = self._all["document"]  # for bisect: searchsorted would copy all of them
        self._rows = self._between(self._place(first), self._place(last))
        self._next = next(self._rows, None)

    def find(self, document: int) -> tuple[int, float] | None:
        """The document that stays in its place, and their similarity; None if the document stays.

        Ask for all documents, in order.
        """
        if self._next is None or self._next[0] != document:
            return None
        _, like, similarity = self._next
        self._next = next(self._rows, None)
        while (better := self._record(like)) is not None:
            like, similarity = better  # equal to a dropped document, which is like another
        return like, similarity

    def count(self, first: int, last: int) -> int:
        """Documents dropped of any from number `first` to `last` - 1."""
        return self._place(last) - self._place(first)

    def _place(self, document: int) -> int:
        return bisect_left(self._documents, document)

    def _between(self, low: int, high: int) -> Iterator[tuple[int, int, float]]:
        for start in range(low, high, CHUNK):
            yield from self._all[start : min(start + CHUNK, high)].tolist()

    def _record(self, document: int) -> tuple[int, float] | None:
        where = self._place(document)
        if where == len(self._documents) or self._documents[where] != document:
            return None
        return int(self._all["like"][where]), float(self._all["similarity"][where])
