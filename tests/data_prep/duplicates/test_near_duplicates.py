"""Near duplicates found with sorted runs on disk are those of a plain search in memory."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.duplicates import dedup_index, items, minhash_index, near_duplicates
from data_prep.duplicates.minhash_index import SignedWriter, find_pairs
from data_prep.duplicates.near_duplicates import Dropped, choose, compare_pairs
from data_prep.duplicates.shingles import Signed

BANDS, PARTNERS = 2, 3


def small():
    """Sizes at which a few dozen documents fill runs, chunks and blocks."""
    stack = ExitStack()
    constants = {"PREFIX_BITS": 4, "BUCKETS": 16, "RUN_RECORDS": 8}
    stack.enter_context(mock.patch.multiple(dedup_index, **constants))
    stack.enter_context(mock.patch.multiple(minhash_index, CHUNK=8, BLOCK=5, PARTNERS=PARTNERS))
    stack.enter_context(mock.patch.multiple(near_duplicates, CHUNK=3))
    stack.enter_context(mock.patch.multiple(items, OPEN_FILES=1))
    return stack


# Few keys, so that many documents share one, and small sets that are often equal or alike.
documents = st.tuples(
    st.tuples(*[st.sampled_from([0, 1, 2**62, 2**63])] * BANDS), st.frozensets(st.integers(0, 5), max_size=5)
)


def by_search(corpus, min_similarity):
    """{dropped document: the earlier ones that stay and are similar} by the definition."""
    partners, dropped, similar = {}, {}, {}
    for number, (keys, shingles) in enumerate(corpus):
        likes = set()
        for key in keys:
            firsts = partners.setdefault(key, {})  # set of shingles -> first document
            likes |= {firsts[shingles]} if shingles in firsts else set(firsts.values())
            if len(firsts) < PARTNERS:
                firsts.setdefault(shingles, number)
        likes.discard(number)
        stay = set()
        for like in likes:
            one, other = shingles, corpus[like][1]
            if one and len(one & other) / len(one | other) >= min_similarity:
                stay |= similar[like] if one == other and like in dropped else {like} - dropped.keys()
        similar[number] = stay
        if stay:
            dropped[number] = stay
    return dropped


def by_runs(folder, parts, n_shares, min_similarity):
    n_parts, n_documents = len(parts), sum(map(len, parts))
    for number, part in enumerate(parts):
        writer = SignedWriter(folder, number)
        for start in range(0, len(part), 3):
            batch = part[start : start + 3]
            shingles = [sorted(each) for _, each in batch]
            signed = Signed(
                np.array([x for each in shingles for x in each], np.uint32),
                np.array([len(each) for each in shingles]),
                np.array([keys for keys, _ in batch], np.uint64),
                np.array([hash(each) & (2**64 - 1) for _, each in batch], np.uint64),
            )
            writer.add(signed)
        writer.close()
    for share in range(n_shares):
        find_pairs(folder, n_parts, BANDS, share, n_shares)
    for share in range(n_shares):
        compare_pairs(folder, n_parts, BANDS, min_similarity, share, n_shares)
    counts = choose(folder, n_parts, BANDS, n_shares)
    reader = Dropped(folder, 0, n_documents)
    found = {number: reader.find(number) for number in range(n_documents)}
    assert counts["dropped"] == sum(each is not None for each in found.values())
    return {number: each for number, each in found.items() if each is not None}


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(documents, max_size=30), min_size=1, max_size=4),
    n_shares=st.integers(1, 5),
    min_similarity=st.sampled_from([0.1, 0.4, 0.5, 1.0]),
)
def test_what_is_dropped_is_what_a_search_drops(parts, n_shares, min_similarity):
    corpus = [document for part in parts for document in part]
    with small(), tempfile.TemporaryDirectory() as folder:
        found = by_runs(Path(folder), parts, n_shares, min_similarity)
    expected = by_search(corpus, min_similarity)
    assert found.keys() == expected.keys()
    for number, (like, similarity) in found.items():
        one, other = corpus[number][1], corpus[like][1]
        assert like not in found
        assert like in expected[number]
        assert np.float32(len(one & other) / len(one | other)) == np.float32(similarity)
