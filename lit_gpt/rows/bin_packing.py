"""Documents' lengths -> rows of pieces: the arithmetic of packing, without files.

A piece is (document, start, length), counted in predictions: a document of n tokens has n-1, inputs
`t[start : start+length]` and labels one further. A row holds up to `block_size` predictions.
"""

import functools
from dataclasses import dataclass

import numpy as np

from lit_gpt.cli import InputError


@dataclass(frozen=True)
class Packing:
    """The rows of one shard; row r has the pieces `row_offsets[r] : row_offsets[r + 1]`, at least one.

    `row_offsets`: int64 (n_rows + 1,). `document` (index in the shard), `start`, `length`: int32 (n_pieces,).
    Slots that are left free at a row's end have no piece. Rows stand in the order of their first documents, a
    row's pieces in the order of the shard; so the first rows are no selection by length.
    """

    row_offsets: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @property
    def n_rows(self) -> int:
        return self.row_offsets.size - 1

    @functools.cached_property
    def targets_per_row(self) -> np.ndarray:
        """int64 (n_rows,): how many predictions each row holds; the rest of its slots is waste."""
        ends = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])
        return np.diff(ends[self.row_offsets])

    def covers(self, n_predictions: np.ndarray, block_size: int) -> bool:
        """Whether each of the documents' predictions lies in exactly one row and no row is overfull."""
        order = np.lexsort((self.start, self.document))
        document, start, end = self.document[order], self.start[order], (self.start + self.length)[order]
        is_first = np.diff(document, prepend=-1) != 0
        is_last = np.append(is_first[1:], True)[: document.size]
        return bool(
            np.array_equal(document[is_first], np.flatnonzero(n_predictions > 0))
            and np.array_equal(end[is_last], n_predictions[document[is_last]])
            and np.array_equal(start, np.where(is_first, 0, np.roll(end, 1)))
            and np.all(self.length > 0)
            and np.all(self.targets_per_row <= block_size)
        )


def pack_lengths(n_predictions: np.ndarray, block_size: int, strategy: str = "best_fit") -> Packing:
    """Pack documents into rows, the same way on every machine.

    Strategies:
        best_fit: cut only what is longer than a row; then best-fit-decreasing, that is the longest piece
            first, each into the fullest row that still takes it.
        concat: the documents one after the other, cut wherever a row ends.
        one_per_row: each document, or each part that fits a row, alone.

    Args:
        n_predictions: integers (n_documents,); a document without any gets no piece.
        block_size: predictions a row can hold.

    Raises:
        InputError: an unknown strategy, or a block size below 1.
    """
    if block_size < 1:
        raise InputError(f"block_size is {block_size}: give the predictions a row shall hold, at least 1")
    n_predictions = np.maximum(np.asarray(n_predictions, dtype=np.int64), 0)
    if strategy == "concat":
        return _concatenate(n_predictions, block_size)
    document, start, length = _cut(n_predictions, block_size)
    if strategy == "one_per_row":
        return Packing(np.arange(length.size + 1), document, start, length)
    if strategy == "best_fit":
        row_of_piece, n_rows = _best_fit_decreasing(length, block_size)
        return _by_row(row_of_piece, n_rows, document, start, length)
    raise InputError(f"packing strategy {strategy!r} is unknown: choose best_fit, concat or one_per_row")


def _cut(n_predictions: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every document into full pieces and a remainder: document, start, length, in the shard's order."""
    pieces = -(-n_predictions // block_size)
    document = np.repeat(np.arange(pieces.size, dtype=np.int32), pieces)
    number = np.arange(document.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = number * block_size
    length = np.minimum(n_predictions[document] - start, block_size)
    return document, start.astype(np.int32), length.astype(np.int32)


def _concatenate(n_predictions: np.ndarray, block_size: int) -> Packing:
    filled = np.flatnonzero(n_predictions)
    begin = np.cumsum(n_predictions)[filled] - n_predictions[filled]
    total = int(n_predictions.sum())
    row_begin = np.arange(0, total, block_size)
    following = np.searchsorted(begin, row_begin)
    inside = begin[np.minimum(following, begin.size - 1)] != row_begin  # the row begins inside a document
    cuts = following[inside]
    bounds = np.insert(begin, cuts, row_begin[inside])
    which = np.insert(np.arange(begin.size), cuts, cuts - 1)
    return Packing(
        np.append(np.searchsorted(bounds, row_begin), bounds.size),
        filled[which].astype(np.int32),
        (bounds - begin[which]).astype(np.int32),
        np.diff(bounds, append=total).astype(np.int32),
    )


def _best_fit_decreasing(length: np.ndarray, block_size: int) -> tuple[np.ndarray, int]:
    """The row of every piece, and the number of rows.

    All pieces of one length are placed together: while they last, the rows of the smallest sufficient
    capacity get as many each as fit. That is what placing them one by one gives, for a row that took one and
    still takes another is then the fullest that does.
    """
    by_length = np.argsort(length.astype(np.uint16 if block_size < 2**16 else np.uint32), kind="stable")
    counts = np.bincount(length, minlength=block_size + 1)
    ends = np.cumsum(counts)
    row_of_piece = np.empty(length.size, dtype=np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}
    capacities = 0  # the keys of open_rows as a bit set: the smallest that is large enough is found at once
    n_rows = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        pieces = by_length[ends[size] - counts[size] : ends[size]]
        while pieces.size:
            if fitting := capacities >> size:
                capacity = size + (fitting & -fitting).bit_length() - 1
                rows = np.concatenate(open_rows.pop(capacity))
                capacities ^= 1 << capacity
            else:
                capacity = block_size
                rows = np.arange(n_rows, n_rows - (-pieces.size // (block_size // size)))
                n_rows += rows.size
            each = capacity // size
            taken = min(pieces.size, rows.size * each)
            row_of_piece[pieces[:taken]] = np.repeat(rows, each)[:taken]
            pieces = pieces[taken:]
            full, rest = divmod(taken, each)  # rows that got `each`; what the one after them got, if any
            touched = full + (rest > 0)
            for group, left in (
                (rows[:full], capacity - each * size),
                (rows[full:touched], capacity - rest * size),
                (rows[touched:], capacity),
            ):
                if group.size and left:
                    open_rows.setdefault(left, []).append(group)
                    capacities |= 1 << left
    return row_of_piece, n_rows


def _by_row(
    row_of_piece: np.ndarray, n_rows: int, document: np.ndarray, start: np.ndarray, length: np.ndarray
) -> Packing:
    """Number the rows by their first pieces and bring each row's pieces together, in the order they have."""
    number = np.arange(row_of_piece.size)
    first = np.empty(n_rows, dtype=np.int64)
    first[row_of_piece[::-1]] = number[::-1]  # of several writes the last one stays
    new_name = np.empty(n_rows, dtype=np.int64)
    new_name[np.argsort(first)] = np.arange(n_rows)
    row = new_name[row_of_piece]
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))])
    return Packing(offsets, document[order], start[order], length[order])
