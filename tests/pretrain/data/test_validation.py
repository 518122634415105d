"""What a run validates on: which rows, dealt out how, and what is said of them."""

import json

import numpy as np
import pytest
import torch

from data_prep.tokenizing import job
from lit_gpt.model.loss import IGNORE_INDEX
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.sample_order import validation_rows
from lit_gpt.store.token_store import TokenStore
from pretrain.data.batch import Batch
from pretrain.data.validation import ValidationSample
from pretrain.monitor.metrics import read_metrics
from tests.pretrain.feeding import BLOCK
from tests.pretrain.running import train


@pytest.fixture(scope="module")
def packed(val_store_dir):
    return PackedStore.open(TokenStore.open(val_store_dir), BLOCK)


def targets_of_rows(packed):
    """The targets of every row in stored order, by way of the documents."""
    rows = []
    for shard, n_rows in enumerate(packed.rows_per_shard.tolist()):
        packing = packed.rows(shard)
        for row in range(n_rows):
            targets = []
            for segment in range(packing.offsets[row], packing.offsets[row + 1]):
                tokens = packed.store.document_tokens(shard, packing.document[segment])[
                    packing.start[segment] :
                ]
                targets += tokens[1 : packing.length[segment] + 1].tolist()
            rows.append(targets)
    return rows


def test_for_a_gpu_batches_are_page_locked_so_that_copying_does_not_wait(packed, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    batch = next(ValidationSample(packed, 7).batches(4, device="cuda"))
    assert {id(tensor) for tensor in pinned} == {id(x) for x in (*batch[:3], batch.documents.cu_seqlens)}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_each_row_comes_once_and_ranks_get_as_many_batches(packed, world, max_rows):
    sample = ValidationSample(packed, max_rows)
    ranks = [list(sample.batches(4, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch.input_ids.shape == (4, BLOCK) for batches in ranks for batch in batches)
    labels = torch.cat([batch.labels for together in zip(*ranks, strict=True) for batch in together])
    every_row = targets_of_rows(packed)
    chosen = range(len(every_row)) if max_rows is None else validation_rows(len(every_row), max_rows)
    expected = [every_row[row] for row in chosen]
    for got, want in zip(labels, expected, strict=False):
        assert got[got != IGNORE_INDEX].tolist() == want
    assert int((labels[len(expected) :] != IGNORE_INDEX).sum()) == 0


def test_the_sample_is_uniform_and_depends_on_nothing_else():
    rows = validation_rows(100_000, 5_000)
    assert np.array_equal(rows, np.unique(rows))
    assert rows.size == 5_000
    assert np.array_equal(rows, validation_rows(100_000, 5_000))
    tenths = np.bincount(rows // 10_000)
    assert tenths.min() > 400
    assert tenths.max() < 600
    # A larger sample holds the smaller one: more eval_iters refine the same estimate.
    assert set(rows) <= set(validation_rows(100_000, 6_000))


@pytest.fixture
def sorted_store(tmp_path, tokenizer_dir):
    """Twenty sources in a store, one after the other, each of 30 documents that say one thing only."""
    files = []
    for number in range(20):
        file = tmp_path / f"source-{number:02d}.jsonl"
        text = f"Nummer {number} " * 8
        lines = [{"id": f"{number}/{line}", "text": text} for line in range(30)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(str(file))
    store = tmp_path / "store"
    job.tokenize(
        job.Options(input=files, tokenizer=tokenizer_dir, output=store, max_shard_tokens=10_000, workers=1)
    )
    return store


def test_a_run_validates_on_all_sources_and_says_on_how_many(tmp_path, train_store_dir, sorted_store):
    """With one row in three. The first rows of the store would be those of seven sources."""
    settings = {"max_steps": 2, "warmup_steps": 1, "val_data_dir": sorted_store, "micro_batch_size": 4}
    result = train(tmp_path / "run", train_store_dir, eval_iters=24, **settings)
    assert result.returncode == 0, result.stderr
    packed = PackedStore.open(TokenStore.open(sorted_store), 128)
    sample = ValidationSample(packed, 96)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("validation: "))
    assert line == sample.describe("validation")[0]
    n_rows = packed.rows_per_shard.sum()
    assert f"96 of {n_rows} rows, a fixed sample of " in line
    assert "of 600 documents, from " in line
    n_sources = int(line.split("from ")[1].split()[0])
    assert n_sources == 20
    assert "warning" not in result.stdout

    assert "3 documents are few to validate on" in ValidationSample(packed, 2).describe("validation")[1]
    (complete,) = ValidationSample(packed, None).describe("validation")
    assert complete == f"validation: {n_rows} of {n_rows} rows, all 600 documents, from 20 source(s)"


@pytest.mark.slow
def test_every_world_size_validates_on_the_same_sample(tmp_path, train_store_dir, val_store_dir):
    losses = []
    for devices in (1, 2):
        settings = {"max_steps": 1, "warmup_steps": 0, "eval_iters": 5, "devices": devices}
        result = train(tmp_path / str(devices), train_store_dir, val_data_dir=val_store_dir, **settings)
        assert result.returncode == 0, result.stderr
        losses.append(read_metrics(tmp_path / str(devices) / "metrics.csv")[-1]["val_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
