"""The losses that a run logs, against transformers' on the rows as the log replays them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_gpt.rows.sample_order import RowAddresses
from pretrain.data.row_reader import RowReader, RowTable
from pretrain.datapoints.files import RunLog, from_lists, losses_of
from pretrain.datapoints.replay import Replay
from pretrain.trainer import Trainer
from tests.pretrain.llama import copy_as_llama
from tests.pretrain.running import assert_same_checkpoint, open_run

STEPS = 6
FLAGS = {"max_steps": STEPS, "log_step_interval": 4, "save_step_interval": 5, "warmup_steps": 0}


class CopiedTrainer(Trainer):
    """The trainer, and the weights that each step began with."""

    def train_step(self, batch, waited):
        self.__dict__.setdefault("copies", {})[batch.step] = copy_as_llama(self.model, self.config)
        return super().train_step(batch, waited)


@pytest.fixture(scope="module")
def flags(train_store_dir, masked_store_dir):
    return FLAGS | {"train_data_dir": [f"{train_store_dir}:1", f"{masked_store_dir}:1"]}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, train_store_dir, flags):
    out_dir = tmp_path_factory.mktemp("run")
    trainer = open_run(out_dir, train_store_dir, CopiedTrainer, activation_checkpointing="selective", **flags)
    trainer.fit()
    return trainer


def replayed(replay: Replay, step: int) -> list[np.ndarray]:
    """The raw tokens of each segment of a step, from the stores."""
    [(period, table)] = replay.log.by_period(replay.log.step_rows(step))
    store, shard, row, checksums = (table[name].to_numpy() for name in ("store", "shard", "row", "checksum"))
    rows = from_lists(table)
    plan = RowTable(RowAddresses(store, np.zeros_like(row), shard, row), checksums, rows)
    read = RowReader(replay.data(period).stores, plan).read(0, table.num_rows)
    tokens = np.concatenate([row.tokens for row in read])
    return np.split(tokens.astype(np.int64), np.cumsum(rows.length + 1)[:-1])


def loss_by_transformers(llama, raw: np.ndarray) -> float:
    """Mean over the targets, those whose raw token is not negative."""
    tokens = torch.from_numpy(raw & 0x7FFFFFFF)
    labels = torch.from_numpy(np.where(raw < 0, -100, raw))[1:]
    return F.cross_entropy(llama(tokens[None, :-1]).logits[0], labels).item()


def test_they_are_those_of_transformers(trainer):
    replay, masked = Replay(trainer.out_dir), 0
    for step, llama in trainer.copies.items():
        logged = losses_of(replay.log.step_rows(step))
        segments = replayed(replay, step)
        with torch.no_grad():
            expected = [loss_by_transformers(llama, raw) for raw in segments]
        np.testing.assert_allclose(logged.astype(np.float64), expected, rtol=1e-3)
        masked += sum((raw[1:] < 0).any() for raw in segments)
    assert masked > 0
    assert list(trainer.copies) == list(range(1, STEPS + 1))


def test_logging_them_changes_no_bit_of_the_weights(trainer, tmp_path, train_store_dir, flags):
    open_run(tmp_path, train_store_dir, log_losses=False, **flags).fit()
    assert losses_of(RunLog(tmp_path).step_rows(1)) is None
    assert_same_checkpoint(trainer.out_dir, tmp_path, STEPS)
