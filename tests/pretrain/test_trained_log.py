"""The datapoint log of the real training command: killed, resumed on another number of ranks, and proven."""

import os
import signal

import numpy as np
import pyarrow as pa
import pytest

from pretrain.datapoints.files import part_files, read_row_groups
from pretrain.datapoints.replay import Replay
from tests.pretrain.ranks import train_on_ranks
from tests.pretrain.running import open_run, start, steps_logged, wait_until


def logged(run_dir):
    tables = [table for part in part_files(run_dir / "datapoints") for table in read_row_groups(part)]
    return pa.concat_tables(tables).sort_by("sample").drop_columns(["time", "rank"])


def segment_losses(table):
    return table["loss"].combine_chunks().flatten().to_numpy().astype(np.float32)


@pytest.mark.slow
def test_killed_and_resumed_on_two_ranks_the_log_is_that_of_an_undisturbed_run(
    tmp_path, train_store_dir, masked_store_dir
):
    """Over a mixture of a plain and a masked store."""
    broken, straight = tmp_path / "broken", tmp_path / "straight"
    mixture = [f"{train_store_dir}:1", f"{masked_store_dir}:1"]
    settings = {"max_steps": 24, "save_step_interval": 8, "train_data_dir": mixture}
    process = start(broken, train_store_dir, **settings | {"train_data_dir": f"[{','.join(mixture)}]"})
    wait_until(lambda: steps_logged(broken) >= 10, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train_on_ranks(2, broken, train_store_dir, resume="auto", **settings)
    open_run(straight, train_store_dir, **settings).fit()
    report = list(Replay(broken).verify())[-1]
    assert report.messages == []
    assert report.steps == 24
    tables = [logged(out_dir) for out_dir in (broken, straight)]
    # Ranks sum gradients in another order, so losses drift apart; the unit is fp16's last place.
    losses = [segment_losses(table) for table in tables]
    np.testing.assert_allclose(*losses, rtol=2 * 2**-11)
    assert np.isfinite(losses[0]).all()
    assert tables[0].drop_columns(["loss"]).equals(tables[1].drop_columns(["loss"]))
