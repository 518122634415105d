"""The datapoint log: what a run writes is what it was fed, whole, once, and provable from the store."""

import numpy as np
import pytest

from pretrain.dataloader import DataLoader
from pretrain.datapoint_files import RunLog
from pretrain.datapoint_log import DatapointLog
from pretrain.log_replay import Replay
from pretrain.training_data import DataOptions, TrainingData

G = 6


@pytest.fixture(scope="module")
def data(train_store_dir):
    return TrainingData.open(DataOptions([str(train_store_dir)], block_size=64, seed=5, shuffle_window=2))


def log_steps(out_dir, data, first, last, commits=(), skipped=()):
    log = DatapointLog(out_dir, data.describe(), global_batch_size=G)
    log.discard_after(first - 1)
    loader = DataLoader(data, global_batch_size=G, micro_batch_size=4, first_step=first, prefetch=0)
    for batch in loader:
        log.record(batch.rows, 1.7e9 + batch.step)
        if batch.step in commits or batch.step == last:
            log.commit(batch.step, {step for step in skipped if step <= batch.step})
        if batch.step == last:
            return


def verify(out_dir):
    return list(Replay(out_dir).verify())[-1]


def test_a_logged_run_verifies(tmp_path, data):
    log_steps(tmp_path, data, 1, 20, commits={7, 14}, skipped={3})
    report = verify(tmp_path)
    assert report.messages == []
    assert (report.steps, report.rows) == (20, 20 * G)
    rows = RunLog(tmp_path).step_rows(3)
    assert rows["applied"].to_pylist() == [False] * G
    assert rows["sample"].to_pylist() == list(range(2 * G, 3 * G))
