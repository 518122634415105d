"""Items of any document are read, with few files open, and all are closed."""

import os

import numpy as np

from data_prep.duplicates import items
from data_prep.duplicates.items import Items, ItemWriter


def n_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_are_closed_when_there_are_many_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "OPEN_FILES", 3)
    for part in range(10):
        writer = ItemWriter(tmp_path, part)
        writer.add(b"%d.%d" % (part, part), np.array([2, 1]))
        writer.close()
    before = n_open()
    reader = Items(tmp_path, np.arange(0, 22, 2))
    for part in [*range(10), *range(10)]:
        read = [reader.read(*reader.bounds(2 * part + number)) for number in (0, 1)]
        assert read == [b"%d." % part, b"%d" % part]
        assert n_open() <= before + 2 * 3
    reader.close()
    assert n_open() == before
