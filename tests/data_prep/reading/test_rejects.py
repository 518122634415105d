"""What cannot be used is named and counted, up to a limit."""

from pathlib import Path

import pytest

from data_prep.reading.batches import Rejected
from data_prep.reading.documents import read_documents
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import InputError


def test_too_many_bad_lines_stop(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"text": "x"}' + b"\n{" * 4)
    assert len(list(read_documents([file], Rejects(limit=4)))) == 1
    with pytest.raises(InputError, match=rf"more than 3 unusable lines, the last {file}:5"):
        list(read_documents([file], Rejects(limit=3)))


def test_the_detail_of_a_place_is_cut():
    """A URI may be as long as its record, and a file may have any number of records that are left out."""
    rejects = Rejects()
    rejects.add("a.warc", Rejected(7, "left out: not HTML", detail="http://a.de/" + "x" * 1_000_000))
    [(place, reason)] = rejects.places
    assert (place, len(reason)) == ("a.warc:7", len("left out: not HTML ()") + 200)
