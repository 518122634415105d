"""Batches against a builder that goes through the segments one token at a time."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.model.loss import IGNORE_INDEX
from lit_gpt.rows.rows import RowTokens
from lit_gpt.store import masking
from pretrain.data.batch import assemble

PAD = 2


@st.composite
def rows(draw) -> tuple[int, list[list[list[int]]]]:
    """A block size and rows of segments that fit it; a segment is its tokens, one more than its targets."""
    block_size = draw(st.integers(1, 24))
    result = []
    for _ in range(draw(st.integers(1, 4))):
        segments, left = [], block_size
        while left and draw(st.booleans()):
            length = draw(st.integers(1, left))
            segments.append(draw(st.lists(st.integers(0, 60_000), min_size=length + 1, max_size=length + 1)))
            left -= length
        result.append(segments)
    return block_size, result


@given(rows(), st.randoms(use_true_random=False), st.booleans())
def test_rows_of_masked_and_plain_stores_are_mixed(case, random, beside_uint16):
    """Against the same rows without masks: ids stay, and a label is there where its token is a target."""
    block_size, segments_of_rows = case
    plain = assemble([as_read(segments) for segments in segments_of_rows], block_size, PAD)
    mixed, expected = [], []
    for number, segments in enumerate(segments_of_rows):
        row = as_read(segments, np.int32 if number or not beside_uint16 else np.uint16)
        masked = np.array([random.random() < 0.5 for _ in row.tokens], bool) & (row.tokens.dtype == np.int32)
        mixed.append(row._replace(tokens=masking.mask(row.tokens, ~masked) if masked.any() else row.tokens))
        bounds = np.cumsum([0, *map(len, segments)]).tolist()
        labels = [masks for first, end in itertools.pairwise(bounds) for masks in masked[first + 1 : end]]
        expected += labels + [False] * (block_size - len(labels))
    batch = assemble(mixed, block_size, PAD)
    assert torch.equal(batch.input_ids, plain.input_ids)
    assert torch.equal(batch.positions, plain.positions)
    assert torch.equal(batch.documents.cu_seqlens, plain.documents.cu_seqlens)
    hidden = torch.tensor(expected, dtype=torch.bool).view_as(plain.labels)
    assert torch.equal(batch.labels, plain.labels.masked_fill(hidden, IGNORE_INDEX))


def as_read(segments: list[list[int]], dtype: type = np.uint16) -> RowTokens:
    tokens = np.array([token for segment in segments for token in segment], dtype=dtype)
    return RowTokens(tokens, np.array([len(segment) - 1 for segment in segments], dtype=np.int32))


@given(rows())
def test_equals_token_by_token(case):
    block_size, segments_of_rows = case
    inputs, labels, positions, bounds = [], [], [], [0]
    for segments in segments_of_rows:
        used = 0
        for segment in segments:
            for place in range(len(segment) - 1):
                inputs.append(segment[place])
                labels.append(segment[place + 1])
                positions.append(place)
            used += len(segment) - 1
            bounds.append(len(inputs))
        for place in range(block_size - used):
            inputs.append(PAD)
            labels.append(IGNORE_INDEX)
            positions.append(place)
        if used < block_size:
            bounds.append(len(inputs))

    batch = assemble([as_read(segments) for segments in segments_of_rows], block_size, PAD)
    for tensor, expected in zip(batch[:3], (inputs, labels, positions), strict=True):
        assert tensor.shape == (len(segments_of_rows), block_size)
        assert tensor.dtype == torch.int64
        assert tensor.flatten().tolist() == expected
    assert batch.documents.cu_seqlens.dtype == torch.int32
    assert batch.documents.cu_seqlens.tolist() == bounds
    assert batch.documents.max_seqlen == block_size


@pytest.mark.parametrize(
    ("lengths", "block_size", "expected"),
    [
        ([512, 300], 2048, 2048),
        ([512, 512, 512, 512], 2048, 512),
        ([513, 512, 511, 512], 2048, 2048),
        ([9], 9, 9),
    ],
)
def test_no_document_is_longer_than_max_seqlen_which_has_two_values(lengths, block_size, expected):
    """In the first case the slots left over are a document of 1,236 tokens."""
    row = RowTokens(np.zeros(sum(lengths) + len(lengths), np.uint16), np.array(lengths, np.int32))
    assert assemble([row], block_size, PAD).documents.max_seqlen == expected


def test_neighbours_do_not_see_each_other():
    """What stands in one document of a row changes nothing of another's inputs, labels and positions."""
    first, second, other = [1, 10, 11, 12, 2], [1, 20, 21, 2], [1, 30, 31, 32, 2]
    alone = assemble([as_read([second])], 7, PAD)
    for neighbour in (first, other):
        both = assemble([as_read([neighbour, second])], 7, PAD)
        assert both.documents.cu_seqlens.tolist() == [0, 4, 7]
        for together, apart in zip(both[:3], alone[:3], strict=True):
            assert torch.equal(together[:, 4:7], apart[:, :3])
        assert both.labels[0, 3] == neighbour[-1]


def test_tokens_past_uint16_and_a_move_keep_every_value():
    batch = assemble([as_read([[70_000, 80_000, 100_000]], np.int32)], 2, PAD).to("cpu")
    assert batch.input_ids.tolist() == [[70_000, 80_000]]
    assert batch.labels.tolist() == [[80_000, 100_000]]
    assert batch.documents.cu_seqlens.tolist() == [0, 2]
