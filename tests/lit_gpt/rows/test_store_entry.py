"""Entries of train_data_dir: what is read, and what is refused."""

import itertools
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.errors import InputError
from lit_gpt.rows.store_entry import DocumentShare, StoreEntry, parse_stores, weights_of

PERCENT = st.decimals(0, 100, places=3)


@pytest.mark.parametrize(
    ("text", "share", "weight", "again"),
    [
        ("data/de", None, None, "data/de"),
        ("data/de:3", None, 3.0, "data/de:3.0"),
        ("data/de@0-40", "0-40", None, "data/de@0-40"),
        ("data/de@00.50-40.0:1e-3", "0.5-40", 0.001, "data/de@0.5-40:0.001"),
        ("data/de@0-100", "0-100", None, "data/de@0-100"),
    ],
)
def test_an_entry_is_a_folder_a_share_and_a_weight(text, share, weight, again):
    entry = StoreEntry.parse(text)
    assert entry == (Path("data/de"), share and DocumentShare.parse(share), weight)
    assert str(entry) == again
    assert StoreEntry.parse(again) == entry


def test_folders_keep_a_colon_or_an_at_in_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run:7", "de@0-40", "de@0-40:2", "user@host"):
        Path(name).mkdir()
        for suffix, share, weight in (
            ("", None, None),
            (":3", None, 3),
            ("@5-6", (5, 6), None),
            ("@5-6:3", (5, 6), 3),
        ):
            assert StoreEntry.parse(name + suffix) == (Path(name), share, weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("de@40-10", "'40-10' is not LO-HI in percent, with 0 <= LO < HI <= 100, and de@40-10 is no folder"),
        ("de@x-y:2", "'x-y' is not LO-HI"),
        ("de@10-10", "'10-10' is not LO-HI"),
        ("de@0-100.1", "'0-100.1' is not LO-HI"),
        ("de@-5-10", "'-5-10' is not LO-HI"),
        ("de@1e1-20", "'1e1-20' is not LO-HI"),
        ("de@", "'' is not LO-HI"),
        ("de@40", "'40' is not LO-HI"),
        ("de:heavy", "'heavy' is not a weight and de:heavy is no folder"),
        ("de@0-40:", "'' is not a weight"),
    ],
)
def test_what_is_no_share_and_no_weight_is_named(text, message):
    with pytest.raises(InputError) as error:
        StoreEntry.parse(text)
    assert str(error.value).startswith(f"train_data_dir {text}: {message}")


def test_weights_are_of_all_or_of_none():
    assert weights_of(parse_stores(["de@0-40:3", "en:1"])) == [3, 1]
    assert weights_of(parse_stores(["de@0-40", "en"])) is None
    with pytest.raises(InputError, match="every store a weight or none"):
        parse_stores(["de:3", "en@0-40"])


@given(st.lists(PERCENT, unique=True, min_size=2), st.integers(0, 2**64 - 1))
def test_shares_that_meet_divide_the_hashes(percents, number):
    """Exactly, also beside a limit: each hash between the first and the last limit is in one share."""
    limits = sorted(percents)
    shares = [DocumentShare.parse(f"{low}-{high}") for low, high in itertools.pairwise(limits)]
    near = [bound + step for share in shares for bound in share.bounds for step in (-1, 0, 1)]
    for value in (number, *near):
        percent = Fraction(value) * 100 / 2**64
        inside = [share.low <= percent < share.high for share in shares]
        assert inside == [begin <= value < end for begin, end in (share.bounds for share in shares)]
        assert sum(inside) == (limits[0] <= percent < limits[-1])
