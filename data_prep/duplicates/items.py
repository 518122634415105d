"""Keep an item of any length for each document, in files per part of the input, and read single ones.

Documents are numbered through all parts. Files, `part` of five digits:

    <part>.bin         the items, one after the other
    <part>.ends.npy    int64 (documents,): where each item ends, in units of the item
"""

import os
from pathlib import Path

import numpy as np

from data_prep.duplicates.dedup_index import save_array
from lit_gpt.files import create

OPEN_FILES = 250
"""Files of either kind that a reader keeps open; systems often allow a process 1,024."""


class ItemWriter:
    """Writes the items of a part's documents in input order."""

    def __init__(self, folder: Path, part: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = folder / f"{part:05d}"
        self._file = create(self._stem.with_suffix(".bin"))
        self._sizes: list[np.ndarray] = []

    def add(self, items: bytes | memoryview, sizes: np.ndarray) -> None:
        """Add the items of some documents, one after the other.

        Args:
            sizes: int64 (documents,), in units of the item.
        """
        self._file.write(items)
        self._sizes.append(sizes)

    def close(self) -> None:
        self._file.close()
        sizes = np.concatenate([np.zeros(0, np.int64), *self._sizes])
        save_array(self._stem.with_suffix(".ends.npy"), np.cumsum(sizes, dtype=np.int64))


class Items:
    """Reads the items of single documents.

    Args:
        starts: int64 (parts + 1,), number of each part's first document, then the total.
        unit: bytes of a unit.
    """

    def __init__(self, folder: Path, starts: np.ndarray, unit: int = 1) -> None:
        self._folder = folder
        self._starts = starts
        self._unit = unit
        self._ends: dict[int, np.ndarray] = {}
        self._descriptors: dict[int, int] = {}

    def bounds(self, document: int) -> tuple[int, int, int]:
        """The part of a document, and start and end of its item there, in units."""
        part = int(np.searchsorted(self._starts, document, side="right")) - 1
        if part not in self._ends:
            if len(self._ends) == OPEN_FILES:
                del self._ends[next(iter(self._ends))]  # a mapped file stays open
            self._ends[part] = np.load(self._folder / f"{part:05d}.ends.npy", mmap_mode="r")
        ends, number = self._ends[part], document - int(self._starts[part])
        return part, int(ends[number - 1]) if number else 0, int(ends[number])

    def read(self, part: int, start: int, end: int) -> bytes:
        """The item with these bounds."""
        if part not in self._descriptors:
            if len(self._descriptors) == OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[part] = os.open(self._folder / f"{part:05d}.bin", os.O_RDONLY)
        return os.pread(self._descriptors[part], self._unit * (end - start), self._unit * start)

    def close(self) -> None:
        self._ends.clear()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
