"""Which documents stages read again, by the shares that they read. test_stage.py has where they begin."""

import dataclasses

import pytest

from lit_gpt.rows.store_entry import DocumentShare
from pretrain.stages.starts import Starts, StoreRows

FIRST = StoreRows("de@0-40", "fingerprint", DocumentShare.parse("0-40"), 64, "best_fit")


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ({}, False),  # its rows are continued
        ({"name": "copy@0-40"}, False),
        ({"block_size": 128}, True),
        ({"packing": "concat"}, True),
        ({"share": None}, True),
        ({"share": DocumentShare.parse("39.5-60")}, True),
        ({"share": DocumentShare.parse("40-100"), "block_size": 128}, False),
        ({"store": "another", "block_size": 128}, False),
    ],
)
def test_documents_repeat_where_shares_overlap_in_other_rows(change, repeated):
    starts = Starts()
    assert starts.repeats([FIRST]) == []
    starts.end("adapt", [FIRST], [10], samples=10)
    second = dataclasses.replace(FIRST, **change)
    warnings = starts.repeats([second])
    assert len(warnings) == repeated
    assert all("stage adapt read de@0-40 in rows of 64" in warning for warning in warnings)
    starts.end("again", [second], [20], samples=10)
    assert starts.repeats([second]) == []
