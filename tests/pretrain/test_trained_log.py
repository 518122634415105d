"""The datapoint log of the real training command: killed, resumed on another number of ranks, and proven."""

import os
import signal

import numpy as np
import pyarrow as pa
import pytest

from pretrain.datapoints.files import part_files, read_row_groups
from pretrain.datapoints.replay import Replay
from tests.pretrain.running import start, steps_logged, train, wait_until


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
    mixture = f"[{train_store_dir}:1,{masked_store_dir}:1]"
    settings = {"max_steps": 24, "save_step_interval": 8, "train_data_dir": mixture}
    process = start(broken, train_store_dir, **settings)
    wait_until(lambda: steps_logged(broken) >= 10, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for out_dir, more in ((broken, {"resume": "auto", "devices": 2}), (straight, {})):
        result = train(out_dir, train_store_dir, **settings, **more)
        assert result.returncode == 0, result.stderr
    report = list(Replay(broken).verify())[-1]
    assert report.messages == []
    assert report.steps == 24
    tables = [logged(out_dir) for out_dir in (broken, straight)]
    # Ranks sum gradients in another order, so losses drift apart; the unit is fp16's last place.
    losses = [segment_losses(table) for table in tables]
    np.testing.assert_allclose(*losses, rtol=2 * 2**-11)
    assert np.isfinite(losses[0]).all()
    assert tables[0].drop_columns(["loss"]).equals(tables[1].drop_columns(["loss"]))
