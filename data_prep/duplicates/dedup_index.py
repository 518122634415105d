"""Find the paragraphs of a corpus that repeat an earlier one, in bounded memory, by sorted runs on disk.

    stage 1, for each part of the input    SignatureWriter  write 128-bit hashes in runs sorted by hash
    stage 2, for each share of the hashes  find_repeats     merge runs; equal hashes after the first repeat
    stage 3, for each part of the input    RepeatFlags      read the repeats back in the order of the input

A part is a sequence of consecutive input files. Paragraphs are numbered through all parts; the first
occurrence has the smallest number. So the result depends neither on the number of parts nor on that of
shares.

Files, little endian, `part` and `share` of five digits:

    signatures/<part>.bin         RECORDs of its runs, one run after the other
    signatures/<part>.bounds.npy  uint32 (runs, BUCKETS + 1): start in the run of each prefix of the hash
    signatures/<part>.counts.npy  int64 (BUCKETS,): records of the part by prefix
    repeats/<share>.bin           uint32 numbers within BLOCKs of paragraphs, sorted in each run
    repeats/<share>.bounds.npy    int64 (runs, blocks + 1): start in the file of each block of each run
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gpt.files import create

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u4")])
"""A paragraph: the two halves of its hash, and its number within the run. Packed to 20 bytes."""
PREFIX_BITS = 16
BUCKETS = 1 << PREFIX_BITS
RUN_RECORDS = 1 << 22
"""Records sorted in memory at a time in stages 1 and 2: 80 MB, about 400 MB while sorting."""
BLOCK = 1 << 26
"""Paragraphs whose flags stage 3 holds at a time, at one byte each."""


class SignatureWriter:
    """Stage 1: collects the hashes of a part's paragraphs in input order and writes sorted runs."""

    def __init__(self, folder: Path, part: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = folder / f"{part:05d}"
        self._file = create(self._stem.with_suffix(".bin"))
        self._waiting: list[bytes] = []
        self._n_waiting = 0
        self._bounds: list[np.ndarray] = []

    def add(self, digests: list[bytes]) -> None:
        """Add a document's paragraphs in order; a digest has 16 bytes."""
        self.add_bytes(b"".join(digests))

    def add_bytes(self, digests: bytes) -> None:
        """Add digests of 16 bytes each, that should lie in one run."""
        self._waiting.append(digests)
        self._n_waiting += len(digests) // 16
        if self._n_waiting >= RUN_RECORDS:
            self._write_run()

    def close(self) -> None:
        """Write the rest, and the index last: a part without it was never finished."""
        self._write_run()
        self._file.close()
        bounds = np.array(self._bounds, dtype=np.uint32).reshape(-1, BUCKETS + 1)
        save_array(self._stem.with_suffix(".counts.npy"), np.diff(bounds, axis=1).sum(axis=0, dtype=np.int64))
        save_array(self._stem.with_suffix(".bounds.npy"), bounds)

    def _write_run(self) -> None:
        hashes = np.frombuffer(b"".join(self._waiting), dtype="<u8").reshape(-1, 2)
        self._waiting, self._n_waiting = [], 0
        order = np.argsort(hashes[:, 0], kind="stable")
        run = np.empty(len(order), RECORD)
        run["high"], run["low"], run["offset"] = hashes[order, 0], hashes[order, 1], order
        self._file.write(run.view(np.uint8).data)
        prefixes = (run["high"] >> np.uint64(64 - PREFIX_BITS)).astype(np.int64)
        counts = np.bincount(prefixes, minlength=BUCKETS)
        self._bounds.append(np.concatenate(([0], np.cumsum(counts))))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file; errors name it."""
    content = io.BytesIO()
    np.save(content, array)
    with create(path) as file:
        file.write(content.getbuffer())


def part_starts(signatures: Path, n_parts: int) -> np.ndarray:
    """int64 (n_parts + 1,): number of each part's first paragraph, then the total."""
    counts = [np.load(signatures / f"{part:05d}.counts.npy").sum() for part in range(n_parts)]
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


@dataclass
class Records:
    """Hashes and numbers of paragraphs, in arrays of one length; `number` counts through the input."""

    high: np.ndarray
    low: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, which: np.ndarray) -> "Records":
        return Records(self.high[which], self.low[which], self.number[which])

    @staticmethod
    def join(parts: list["Records"]) -> "Records":
        return Records(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("high", "low", "number"))
        )


def find_repeats(signatures: Path, repeats: Path, n_parts: int, share: int, n_shares: int) -> int:
    """Stage 2: writes the numbers of all repeats whose hashes fall in this share of the prefixes.

    Memory is bounded by RUN_RECORDS and by the different paragraphs of one of the 65,536 prefixes; a
    paragraph is held once, however often it repeats.

    Returns:
        Number of repeats.
    """
    starts = part_starts(signatures, n_parts)
    edges = np.arange(0, starts[-1] + BLOCK, BLOCK)
    repeats.mkdir(parents=True, exist_ok=True)
    bounds, n_repeats = [], 0
    with create(repeats / f"{share:05d}.bin") as file:
        for first, last in bucket_ranges(signatures, n_parts, n_shares)[share::n_shares]:
            for numbers in _repeats_between(signatures, starts, first, last):
                numbers.sort()
                file.write((numbers % BLOCK).astype("<u4").data)
                bounds.append(np.searchsorted(numbers, edges) + n_repeats)
                n_repeats += len(numbers)
    save_array(repeats / f"{share:05d}.bounds.npy", np.array(bounds, dtype=np.int64).reshape(-1, len(edges)))
    return n_repeats


def bucket_ranges(signatures: Path, n_parts: int, n_shares: int) -> list[tuple[int, int]]:
    """Ranges of neighbouring prefixes that fit in memory; at least one for each share."""
    counts = sum(np.load(signatures / f"{part:05d}.counts.npy") for part in range(n_parts))
    before = np.concatenate(([0], np.cumsum(counts)))
    size = max(1, min(RUN_RECORDS, -(-int(before[-1]) // n_shares)))
    ranges, first = [], 0
    while first < BUCKETS:
        last = max(first + 1, int(np.searchsorted(before, before[first] + size, side="right")) - 1)
        ranges.append((first, last))
        first = last
    return ranges


def _repeats_between(signatures: Path, starts: np.ndarray, first: int, last: int) -> Iterator[np.ndarray]:
    """Numbers (int64) of the repeats among the records with first <= prefix < last."""
    return in_chunks(records_between(signatures, starts, first, last), RUN_RECORDS, _separate_repeats)


def in_chunks(
    parts: Iterable[Records],
    size: int,
    separate: Callable[[list[Records]], tuple[list[Records], np.ndarray]],
) -> Iterator[np.ndarray]:
    """Give records to `separate`, `size` or more at a time.

    Args:
        parts: of records, one after the other.
        separate: gives the records that stand for its own when more follow, and what is yielded.
    """
    kept: list[Records] = []
    waiting: list[Records] = []
    n_waiting = 0
    for records in parts:
        waiting.append(records)
        n_waiting += len(records)
        if n_waiting >= size:
            kept, found = separate(kept + waiting)
            waiting, n_waiting = [], 0
            yield found
    if waiting:
        yield separate(kept + waiting)[1]


def _separate_repeats(parts: list[Records]) -> tuple[list[Records], np.ndarray]:
    """Split records into first ones and numbers of repeats. Equal records must be in the order of numbers."""
    records = Records.join(parts)
    by_hash = records[np.argsort(records.high, kind="stable")]
    same_high = by_hash.high[1:] == by_hash.high[:-1]
    same_low = by_hash.low[1:] == by_hash.low[:-1]
    if np.any(same_high & ~same_low):  # rare; sorting always by both halves costs twice as much
        by_hash = records[np.lexsort((records.low, records.high))]
        same_high = by_hash.high[1:] == by_hash.high[:-1]
        same_low = by_hash.low[1:] == by_hash.low[:-1]
    repeated = np.zeros(len(records), dtype=bool)
    repeated[1:] = same_high & same_low
    return [by_hash[~repeated]], by_hash.number[repeated]


def records_between(signatures: Path, starts: np.ndarray, first: int, last: int) -> Iterator[Records]:
    """The records of each run with first <= prefix < last, runs in the order of the input."""
    for part in range(len(starts) - 1):
        bounds = np.load(signatures / f"{part:05d}.bounds.npy", mmap_mode="r")
        n_records = bounds[:, -1].astype(np.int64)
        run_starts = np.concatenate(([0], np.cumsum(n_records)))
        with (signatures / f"{part:05d}.bin").open("rb") as file:
            for run_start, low, high in zip(run_starts, bounds[:, first], bounds[:, last], strict=False):
                file.seek((int(run_start) + int(low)) * RECORD.itemsize)
                records = np.fromfile(file, RECORD, int(high) - int(low))
                numbers = records["offset"].astype(np.int64) + (starts[part] + run_start)
                yield Records(records["high"].copy(), records["low"].copy(), numbers)


class RepeatFlags:
    """Stage 3: tells which of consecutive paragraphs, from number `first` on, are repeats."""

    def __init__(self, repeats: Path, n_shares: int, first: int) -> None:
        self._repeats = repeats
        self._n_shares = n_shares
        self._next = first
        self._block = -1
        self._flags = np.empty(0, dtype=bool)

    def take(self, n: int) -> np.ndarray:
        """bool (n,): True where the paragraph repeats an earlier one."""
        block, offset = divmod(self._next, BLOCK)
        if block != self._block:
            self._load(block)
        flags = self._flags[offset : offset + n]
        self._next += len(flags)
        return flags if len(flags) == n else np.concatenate((flags, self.take(n - len(flags))))

    def _load(self, block: int) -> None:
        self._block = block
        self._flags = np.zeros(BLOCK, dtype=bool)
        for share in range(self._n_shares):
            bounds = np.load(self._repeats / f"{share:05d}.bounds.npy", mmap_mode="r")
            with (self._repeats / f"{share:05d}.bin").open("rb") as file:
                for low, high in bounds[:, block : block + 2]:
                    file.seek(int(low) * 4)
                    self._flags[np.fromfile(file, "<u4", int(high - low))] = True
