"""Repeats found with sorted runs on disk are those that a plain set finds."""

import itertools
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.duplicates import dedup_index
from data_prep.duplicates.dedup_index import RepeatFlags, SignatureWriter, find_repeats, part_starts

# At these sizes a few dozen paragraphs already fill runs, prefixes and blocks.
SMALL = mock.patch.multiple(dedup_index, PREFIX_BITS=4, BUCKETS=16, RUN_RECORDS=8, BLOCK=16)

# Few different halves, so that one high half meets different low halves, in any order.
digests = st.builds(
    lambda high, low: high.to_bytes(8, "little") + low.to_bytes(8, "little"),
    st.sampled_from([0, 1, 2**60, 2**63, 2**64 - 1]),
    st.integers(0, 2),
)


def flags_by_set(parts):
    seen, flags = set(), []
    for digest in itertools.chain.from_iterable(itertools.chain.from_iterable(parts)):
        flags.append(digest in seen)
        seen.add(digest)
    return flags


def flags_by_runs(folder, parts, n_shares, step):
    signatures, repeats = folder / "signatures", folder / "repeats"
    for number, part in enumerate(parts):
        writer = SignatureWriter(signatures, number)
        for document in part:
            writer.add(document)
        writer.close()
    n_repeats = [find_repeats(signatures, repeats, len(parts), share, n_shares) for share in range(n_shares)]
    flags = []
    for start, end in itertools.pairwise(part_starts(signatures, len(parts)).tolist()):
        reader = RepeatFlags(repeats, n_shares, start)
        for position in range(start, end, step):
            flags += reader.take(min(step, end - position)).tolist()
    assert sum(n_repeats) == sum(flags)
    return flags


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(st.lists(digests, max_size=12), max_size=6), min_size=1, max_size=4),
    n_shares=st.integers(1, 7),
    step=st.integers(1, 40),
)
def test_flags_are_those_of_a_set(parts, n_shares, step):
    with SMALL, tempfile.TemporaryDirectory() as folder:
        assert flags_by_runs(Path(folder), parts, n_shares, step) == flags_by_set(parts)
