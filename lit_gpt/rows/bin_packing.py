"""Documents' lengths -> rows of segments: the arithmetic of packing, without files."""

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.rows import Rows


def pack_lengths(n_targets: np.ndarray, block_size: int, strategy: str = "best_fit") -> Rows:
    """Pack documents into rows, the same way on every machine.

    Rows stand in the order of their first documents, a row's segments in the order of the shard, so that the
    first rows are no selection by length. Slots left free at a row's end have no segment.

    Strategies:
        best_fit: cut only what is longer than a row; then best-fit-decreasing, that is the longest segment
            first, each into the fullest row that still takes it.
        concat: the documents one after the other, cut wherever a row ends.
        one_per_row: each document, or each part that fits a row, alone.

    Args:
        n_targets: integers (n_documents,); a document without any gets no segment.
        block_size: targets a row can hold.

    Raises:
        InputError: an unknown strategy, or a block size below 1.
    """
    if block_size < 1:
        raise InputError(f"block_size is {block_size}: give the targets that a row shall hold, at least 1")
    n_targets = np.maximum(np.asarray(n_targets, dtype=np.int64), 0)
    if strategy == "concat":
        return _concatenate(n_targets, block_size)
    document, start, length = _cut(n_targets, block_size)
    if strategy == "one_per_row":
        return Rows(np.arange(length.size + 1), document, start, length)
    if strategy == "best_fit":
        row_of_segment, n_rows = _best_fit_decreasing(length, block_size)
        return _by_row(row_of_segment, n_rows, document, start, length)
    raise InputError(f"packing strategy {strategy!r} is unknown: choose best_fit, concat or one_per_row")


def _cut(n_targets: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each document into full segments and a remainder: document, start, length, in the shard's order."""
    counts = -(-n_targets // block_size)
    document = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
    number = np.arange(document.size) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * block_size
    length = np.minimum(n_targets[document] - start, block_size)
    return document, start.astype(np.int32), length.astype(np.int32)


def _concatenate(n_targets: np.ndarray, block_size: int) -> Rows:
    filled = np.flatnonzero(n_targets)
    begin = np.cumsum(n_targets)[filled] - n_targets[filled]
    total = int(n_targets.sum())
    row_begin = np.arange(0, total, block_size)
    following = np.searchsorted(begin, row_begin)
    inside = begin[np.minimum(following, begin.size - 1)] != row_begin  # the row begins inside a document
    cuts = following[inside]
    bounds = np.insert(begin, cuts, row_begin[inside])
    which = np.insert(np.arange(begin.size), cuts, cuts - 1)
    return Rows(
        np.append(np.searchsorted(bounds, row_begin), bounds.size),
        filled[which].astype(np.int32),
        (bounds - begin[which]).astype(np.int32),
        np.diff(bounds, append=total).astype(np.int32),
    )


def _best_fit_decreasing(length: np.ndarray, block_size: int) -> tuple[np.ndarray, int]:
    """The row of every segment, and the number of rows.

    All segments of one length are placed together: while they last, the rows of the smallest sufficient
    capacity get as many each as fit. That is what placing them one by one gives, for a row that took one and
    still takes another is then the fullest that does.
    """
    by_length = np.argsort(length.astype(np.uint16 if block_size < 2**16 else np.uint32), kind="stable")
    counts = np.bincount(length, minlength=block_size + 1)
    ends = np.cumsum(counts)
    row_of_segment = np.empty(length.size, dtype=np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}
    capacities = 0  # the keys of open_rows as a bit set: the smallest that is large enough is found at once
    n_rows = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        segments = by_length[ends[size] - counts[size] : ends[size]]
        while segments.size:
            if fitting := capacities >> size:
                capacity = size + (fitting & -fitting).bit_length() - 1
                rows = np.concatenate(open_rows.pop(capacity))
                capacities ^= 1 << capacity
            else:
                capacity = block_size
                rows = np.arange(n_rows, n_rows - (-segments.size // (block_size // size)))
                n_rows += rows.size
            each = capacity // size
            taken = min(segments.size, rows.size * each)
            row_of_segment[segments[:taken]] = np.repeat(rows, each)[:taken]
            segments = segments[taken:]
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
    return row_of_segment, n_rows


def _by_row(
    row_of_segment: np.ndarray, n_rows: int, document: np.ndarray, start: np.ndarray, length: np.ndarray
) -> Rows:
    """Number the rows by their first segments; group the segments by row, in the order they have."""
    number = np.arange(row_of_segment.size)
    first = np.empty(n_rows, dtype=np.int64)
    first[row_of_segment[::-1]] = number[::-1]  # of several writes the last one stays
    new_name = np.empty(n_rows, dtype=np.int64)
    new_name[np.argsort(first)] = np.arange(n_rows)
    row = new_name[row_of_segment]
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))])
    return Rows(offsets, document[order], start[order], length[order])


def covers(rows: Rows, n_targets: np.ndarray, block_size: int) -> bool:
    """Whether each of the documents' targets lies in exactly one row and no row holds too many."""
    order = np.lexsort((rows.start, rows.document))
    document, start, end = rows.document[order], rows.start[order], (rows.start + rows.length)[order]
    is_first = np.diff(document, prepend=-1) != 0
    is_last = np.append(is_first[1:], True)[: document.size]
    return bool(
        np.array_equal(document[is_first], np.flatnonzero(n_targets > 0))
        and np.array_equal(end[is_last], n_targets[document[is_last]])
        and np.array_equal(start, np.where(is_first, 0, np.roll(end, 1)))
        and np.all(rows.length > 0)
        and np.all(rows.targets_per_row <= block_size)
    )
