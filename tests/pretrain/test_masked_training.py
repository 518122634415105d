"""Training on masked stores, against a plain loop over conversations and against runs without masks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from lit_gpt.model.loss import IGNORE_INDEX, chunked_cross_entropy
from lit_gpt.store import masking
from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.losses import Steps, losses_by_step
from pretrain.datapoints.replay import Replay
from pretrain.monitor.metrics import read_metrics
from pretrain.options import DataOptions, TrainOptions
from tests.masked_stores import conversations, masked_store
from tests.pretrain.feeding import feed, open_data
from tests.pretrain.ranks import train_on_ranks
from tests.pretrain.running import assert_same_checkpoint, checkpoint_tensors, open_run

STEPS = 4
RUN = {
    "block_size": 64,
    "max_steps": STEPS,
    "global_batch_size": 6,
    "micro_batch_size": 1,
    "packing": "one_per_row",
    "warmup_steps": 0,
    "lr_schedule": "constant",
    "learning_rate": 1e-2,
    "save_step_interval": STEPS,
    "log_step_interval": 1,
}


@pytest.fixture(scope="module")
def uneven_dir(tmp_path_factory, tokenizer_dir):
    """Conversations of which every other one has no target."""
    pairs = enumerate(conversations(60, seed=3))
    uneven = [[(text, target and number % 2 == 0) for text, target in pieces] for number, pieces in pairs]
    return masked_store(tmp_path_factory.mktemp("uneven") / "chat", tokenizer_dir, uneven)


def mixture(train: Path, chat: Path) -> list[str]:
    """A third of the rows plain."""
    return [f"{train}:1", f"{chat}:2"]


def as_documents(tokens: int) -> tuple[torch.Tensor, Documents]:
    return torch.arange(tokens)[None], Documents(torch.tensor([0, tokens], dtype=torch.int32), tokens)


def plain_loop(stores: list[str]) -> tuple[list[float], list[float], list[int], dict[str, torch.Tensor]]:
    """Losses, norms, targets and weights: segment by segment, the loss picked from whole logits."""
    options = DataOptions(stores, 64, packing="one_per_row", seed=TrainOptions().seed)
    data = TrainingData.open(options)
    model = GPT(ModelConfig.load("tiny_100K", vocab_size=512))
    model.init_weights(TrainOptions().seed)
    groups = [[p for p in model.parameters() if (p.dim() < 2) == vector] for vector in (False, True)]
    decayed = [{"params": g, "weight_decay": d} for g, d in zip(groups, (0.1, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(decayed, lr=1e-2, betas=(0.9, 0.95))
    losses, norms, targets = [], [], []
    for step in range(STEPS):
        table = data.table(data.rows(np.arange(6 * step, 6 * step + 6)))
        loss, n_targets = torch.zeros(()), 0
        for row, segment in enumerate(table.rows.offsets[:-1]):
            store = data.stores[table.addresses.store[row]].store
            raw = store.document_tokens(int(table.addresses.shard[row]), int(table.rows.document[segment]))
            start, length = int(table.rows.start[segment]), int(table.rows.length[segment])
            raw = raw[start : start + length + 1].astype(np.int64)
            ids = torch.tensor(raw % 2**31)
            counts = torch.tensor(raw[1:] >= 0)
            logits = model(ids[None, :-1], *as_documents(length))[0]
            loss = loss + F.cross_entropy(logits[counts], ids[1:][counts], reduction="sum")
            n_targets += int(counts.sum())
        optimizer.zero_grad()
        (loss / n_targets).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), TrainOptions().grad_clip).item())
        optimizer.step()
        losses.append(loss.item() / n_targets)
        targets.append(n_targets)
    return losses, norms, targets, {name: tensor.detach() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_all_targets_of_the_global_step_weigh_the_same(tmp_path, train_store_dir, uneven_dir, world_size):
    """On ranks that have very different numbers of them, some none."""
    stores = mixture(train_store_dir, uneven_dir)
    run, flags = tmp_path / "run", RUN | {"train_data_dir": stores}
    if world_size == 1:
        open_run(run, run, **flags).fit()
    else:
        train_on_ranks(world_size, run, run, **flags)
    losses, norms, targets, weights = plain_loop(stores)
    lines = read_metrics(run / "metrics.csv")
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    assert [int(line["tokens"]) for line in lines] == list(itertools.accumulate(targets))
    [logged] = losses_by_step(Replay(run), Steps(1, STEPS)).sums.values()
    assert logged[:, 2] / logged[:, 1] == pytest.approx(losses, rel=2**-10)  # fp16
    assert logged[:, 1].tolist() == targets
    trained = checkpoint_tensors(run, STEPS)
    for name, expected in weights.items():
        # Nearly every number: Adam steps by the sign of a gradient, however close it is to rounding.
        close = torch.isclose(trained[f"model/{name}"], expected, rtol=1e-3, atol=1e-4)
        assert close.float().mean() > 0.999, name


def test_a_step_without_targets_is_a_step_of_gradient_zero(tmp_path, uneven_dir, capsys):
    data = open_data(uneven_dir, packing="one_per_row", seed=TrainOptions().seed)
    batches = itertools.islice(feed(data, global_batch_size=1), STEPS)
    targets = [(batch.n_targets, batch.n_tokens) for batch in batches]
    run = tmp_path / "run"
    open_run(run, uneven_dir, **RUN | {"global_batch_size": 1, "shuffle_window": 2}).fit()
    lines = read_metrics(run / "metrics.csv")
    assert any(n_targets == 0 for n_targets, _ in targets)
    for line, (n_targets, n_tokens) in zip(lines, targets, strict=True):
        assert n_tokens > n_targets
        assert (line["loss"] > 0) == (line["grad_norm"] > 0) == (n_targets > 0)
        assert line["skipped"] == 0
    assert all(tensor.isfinite().all() for tensor in checkpoint_tensors(run, STEPS).values())
    store, out = TokenStore.open(uneven_dir), capsys.readouterr().out
    share = store.n_targets / store.n_tokens
    assert f"masked: {store.n_targets:,} targets, {share:.1%} of its tokens, in 60 rows" in out
    assert "end with EOS" not in out


def test_a_mask_of_ones_is_the_unmasked_run(tmp_path, tokenizer_dir, train_store_dir):
    """The same documents in a plain store, uint16, and in a masked one without a masked token: bitwise."""
    source, tokenizer = TokenStore.open(train_store_dir), Tokenizer.load(tokenizer_dir)
    documents = [source.document_tokens(0, number)[: 30 + number] for number in range(35)]
    for name, masked in (("plain", False), ("masked", True)):
        writer = TokenStoreWriter(tmp_path / name, tokenizer, 1000, masked=masked)
        for number, ids in enumerate(documents):
            raw = masking.mask(ids, np.ones(len(ids), bool)) if masked else ids
            writer.add(str(number), "", number, raw)
        store = writer.finish({})
        assert store.dtype == (np.int32 if masked else np.uint16)
        assert store.n_targets == sum(len(ids) - 1 for ids in documents)
        validated = {"val_data_dir": [f"val={tmp_path / name}"], "packing": "best_fit"}
        open_run(tmp_path / f"{name}-run", tmp_path / name, **RUN | validated).fit()
    one, other = tmp_path / "plain-run", tmp_path / "masked-run"
    assert_same_checkpoint(one, other, STEPS)
    for figure in ("loss", "grad_norm", "val_loss", "tokens"):
        lines = [[line[figure] for line in read_metrics(run / "metrics.csv")] for run in (one, other)]
        assert lines[0] == lines[1]


def test_masked_tokens_get_no_gradient(uneven_dir):
    """Exactly none: not where they are labels, and only through what is read where they are inputs."""
    data = open_data(uneven_dir)
    [batch] = next(iter(feed(data, global_batch_size=4))).micro_batches
    model = GPT(ModelConfig.load("tiny_100K", vocab_size=512)).double()
    model.init_weights(7)
    counts = batch.labels != IGNORE_INDEX
    assert 0 < counts.sum() < counts.numel() / 2

    hidden = model.transformer(batch.input_ids, batch.positions, batch.documents)
    hidden.retain_grad()
    model(*batch[:2], batch.documents, batch.labels).backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(*batch[:2], batch.documents)
    F.cross_entropy(logits[counts], batch.labels[counts], reduction="sum").backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)

    leaf = hidden.detach().flatten(0, 1).requires_grad_()
    chunked_cross_entropy(leaf, model.lm_head.weight, batch.labels.flatten()).backward()
    rows = leaf.grad.abs().sum(dim=1)
    assert torch.equal(rows > 0, counts.flatten())
