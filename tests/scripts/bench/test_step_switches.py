"""Experiments must compute what the trainer computes."""

import numpy as np
import torch

from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from lit_gpt.rows.packed_store import RowTokens
from pretrain.data.batch import assemble
from scripts.bench.step_switches import longest_first


def test_longest_documents_first_is_the_same_loss_of_the_same_documents():
    rng = np.random.default_rng(0)
    rows = [[5, 20, 3], [31, 1], [7, 7, 17]]
    tokens = [RowTokens(rng.integers(0, 96, sum(row) + len(row)), np.array(row)) for row in rows]
    batch = assemble(tokens, 32, filler=1)
    ordered = longest_first(batch)
    lengths = batch.documents.cu_seqlens.diff()
    assert ordered.documents.cu_seqlens.dtype == torch.int32
    assert ordered.documents.cu_seqlens.diff().tolist() == sorted(lengths.tolist(), reverse=True)
    starts = ordered.documents.cu_seqlens[:-1].long()
    assert not ordered.positions.flatten()[starts].any()

    model = GPT(ModelConfig.load("tiny_100K", vocab_size=96))
    model.init_weights(0)
    losses = [model(x.input_ids, x.positions, x.documents, x.labels) for x in (batch, ordered)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)
