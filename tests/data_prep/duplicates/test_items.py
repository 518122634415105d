"""Items of any document are read, with few files open, and all are closed."""

from pathlib import Path

import numpy as np

from data_prep.duplicates import items
from data_prep.duplicates.items import Items, ItemWriter


def n_open(folder: Path) -> int:
    """Of the folder's files: others are closed whenever Python collects what earlier tests left."""
    return sum(file.resolve().is_relative_to(folder) for file in Path("/proc/self/fd").iterdir())


def test_files_are_closed_when_there_are_many_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "OPEN_FILES", 3)
    for part in range(10):
        writer = ItemWriter(tmp_path, part)
        writer.add(b"%d.%d" % (part, part), np.array([2, 1]))
        writer.close()
    reader = Items(tmp_path, np.arange(0, 22, 2))
    for part in [*range(10), *range(10)]:
        read = [reader.read(*reader.bounds(2 * part + number)) for number in (0, 1)]
        assert read == [b"%d." % part, b"%d" % part]
        assert 0 < n_open(tmp_path) <= 2 * 3
    reader.close()
    assert n_open(tmp_path) == 0
