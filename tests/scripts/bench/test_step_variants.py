"""Experiments must compute what the trainer computes."""

import dataclasses

import numpy as np
import pytest
import torch

from lit_gpt.model import gpt, loss
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from lit_gpt.rows.rows import RowTokens
from pretrain import parallel
from pretrain.data import batch, dataloader
from pretrain.data.batch import assemble
from pretrain.options import TrainOptions
from scripts.bench.step_variants import SWITCHES, longest_first


def test_longest_documents_first_is_the_same_loss_of_the_same_documents():
    rng = np.random.default_rng(0)
    rows = [[5, 20, 3], [31, 1], [7, 7, 17]]
    tokens = [RowTokens(rng.integers(0, 96, sum(row) + len(row)), np.array(row)) for row in rows]
    plain = assemble(tokens, 32, pad_token=1)
    ordered = longest_first(plain)
    lengths = plain.documents.cu_seqlens.diff()
    assert ordered.documents.cu_seqlens.dtype == torch.int32
    assert ordered.documents.cu_seqlens.diff().tolist() == sorted(lengths.tolist(), reverse=True)
    starts = ordered.documents.cu_seqlens[:-1].long()
    assert not ordered.positions.flatten()[starts].any()

    model = GPT(ModelConfig.load("tiny_100K", vocab_size=96))
    model.init_weights(0)
    losses = [model(x.input_ids, x.positions, x.documents, x.labels) for x in (plain, ordered)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", SWITCHES)
def test_what_a_switch_replaces_exists(name, monkeypatch):
    """Otherwise an experiment would measure the trainer as it is."""
    for owner in (parallel, batch, dataloader, loss, gpt, gpt.Transformer):
        for attribute, value in list(vars(owner).items()):
            if not attribute.startswith("__"):
                monkeypatch.setattr(owner, attribute, value)  # restored after the test
    SWITCHES[name].apply()
    assert set(SWITCHES[name].options) <= {field.name for field in dataclasses.fields(TrainOptions)}
