"""Steps, epochs and passes: what the first lines of a run and its progress say, against the order itself."""

import contextlib
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import termios

import numpy as np
import pytest

from lit_gpt.checkpoint.folder import list_checkpoints, read_state
from lit_gpt.rows.store_entry import StoreEntry
from pretrain.monitor.epochs import Epochs, StoreSize
from pretrain.monitor.step_reporter import PACE_SECONDS, Pace
from tests.pretrain.feeding import GLOBAL_BATCH, open_data
from tests.pretrain.running import command, environment, open_run


def test_passes_are_those_of_the_order(train_store_dir, val_store_dir):
    data = open_data(f"{train_store_dir}:3", f"{val_store_dir}:1")
    epochs = Epochs.of(data, GLOBAL_BATCH)
    n_steps = 40_000 // GLOBAL_BATCH
    samples = data.rows(np.arange(n_steps * GLOBAL_BATCH))
    for store, passed in enumerate(epochs.passes(n_steps)):
        n_rows = data.stores[store].rows_per_shard.sum()
        assert passed == pytest.approx((samples.store == store).sum() / n_rows, rel=1e-3)
    targets = data.targets_per_row(samples).sum()
    assert epochs.tokens(n_steps) == pytest.approx(targets, rel=0.01)
    assert epochs.now(n_steps) == "epochs " + "/".join(f"{passed:.2f}" for passed in epochs.passes(n_steps))


def test_without_weights_all_stores_end_together(train_store_dir, val_store_dir):
    epochs = Epochs.of(open_data(train_store_dir, val_store_dir), GLOBAL_BATCH)
    one = epochs.rows / GLOBAL_BATCH
    assert epochs.passes(7) == pytest.approx([7 / one] * 2)


def test_what_is_out_of_proportion_is_said():
    sizes = [StoreSize("large", 1000, 60_000), StoreSize("small", 3, 180)]
    assert Epochs(sizes, None, 100).warnings(40) == []
    assert [line.split()[0] for line in Epochs(sizes, None, 100).warnings(50)] == ["large", "small"]
    fewer, often = Epochs(sizes, [9, 1], 100).warnings(40)
    assert fewer.startswith("small has 3 rows, fewer than a step takes of it (10)")
    assert often.startswith("small is read 133.3 times")
    assert "2305.16264" in often


def test_an_estimate_of_a_masked_store_is_near_what_packing_gives(masked_store_dir):
    """Its rows are of all tokens, its targets are known; conversations are short, but not cut."""
    (packed,) = open_data(masked_store_dir).stores
    size, entry = StoreSize.of(packed), StoreEntry(masked_store_dir)
    estimate = StoreSize.estimate(packed.store, entry, packed.block_size, "best_fit")
    assert (estimate.name, estimate.targets) == (size.name, size.targets)
    assert estimate.share_of_targets == size.share_of_targets == packed.n_targets / packed.store.n_tokens
    assert estimate.rows == pytest.approx(size.rows, rel=0.05)


def test_an_estimate_is_near_what_packing_gives(train_store_dir):
    (packed,) = open_data(train_store_dir).stores
    for strategy in ("best_fit", "concat", "one_per_row"):
        (packed,) = open_data(train_store_dir, packing=strategy).stores
        entry = StoreEntry(packed.store.path)
        estimate = StoreSize.estimate(packed.store, entry, packed.block_size, strategy)
        assert estimate.targets == packed.n_targets
        rel = 0.5 if strategy == "one_per_row" else 0.03
        assert estimate.rows == pytest.approx(packed.rows_per_shard.sum(), rel=rel)
    (packed,) = open_data(f"{train_store_dir}@20-60").stores
    entry = StoreEntry(packed.store.path, packed.share)
    estimate = StoreSize.estimate(packed.store, entry, packed.block_size, "best_fit")
    assert (estimate.name, packed.name) == (f"{train_store_dir}@20-60",) * 2
    assert estimate.rows == pytest.approx(packed.rows_per_shard.sum(), rel=0.2)


@pytest.mark.slow
def test_a_run_in_epochs_ends_where_it_should_and_stays_ended(tmp_path, train_store_dir, capsys):
    """A fifth of the data; the warm-up follows, and started again it has the same length."""
    (packed,) = open_data(train_store_dir, block_size=128).stores
    n_rows = int(packed.rows_per_shard.sum())
    n_steps = math.ceil(0.2 * n_rows / 4)
    flags = {"max_steps": None, "max_epochs": 0.2, "warmup_steps": None, "min_lr": None, "resume": "auto"}
    open_run(tmp_path, train_store_dir, save_step_interval=5, **flags).fit()
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "done").read_text())["step"] == n_steps
    assert f"run: {n_steps} steps of 4 rows" in said
    assert f"one epoch = {n_rows / 4:,.1f} steps" in said
    assert f"learning rate: {n_steps // 10} steps of warm-up to 0.003, then cosine to 0.0003" in said
    step, last = list_checkpoints(tmp_path)[-1]
    state = read_state(last)
    assert (step, state["options"]["max_steps"], state["options"]["max_epochs"]) == (n_steps, n_steps, 0.2)
    progress = [line for line in said.splitlines() if line.startswith("step ")]
    assert progress[0].startswith(f"step 1/{n_steps}  epoch 0.00  ")
    assert progress[-1].startswith(f"step {n_steps}/{n_steps}  epoch {4 * n_steps / n_rows:.2f}  ")

    open_run(tmp_path, train_store_dir, save_step_interval=5, **flags | {"max_epochs": None}).fit()
    again = capsys.readouterr().out
    assert f"already complete: step {n_steps} of {n_steps}" in again
    assert f"at step {n_steps}, epoch 0.2" in again


def test_a_run_that_a_flag_has_shortened_says_what_becomes_of_its_warm_up(tmp_path, val_store_dir, capsys):
    """The warm-up of a long run's configuration; and a batch that is larger than the store."""
    settings = {"max_steps": 1, "warmup_steps": 2000, "global_batch_size": 512, "micro_batch_size": 64}
    open_run(tmp_path, val_store_dir, block_size=64, **settings).fit()
    said = capsys.readouterr().out
    assert "0 steps of warm-up (not 2,000: the run is shorter)" in said
    assert "fewer than a step takes of it (512)" in said


def test_the_time_left_is_that_of_the_last_half_hour():
    pace = Pace()
    assert pace.seconds_per_step(1, 100.0, 60.0) == 60.0  # the first step compiles: it is no pace
    assert pace.seconds_per_step(11, 120.0, 1.5) == 2.0
    assert pace.seconds_per_step(21, 200.0, 1.5) == 5.0  # validation counts
    late = 120.0 + PACE_SECONDS + 1
    assert pace.seconds_per_step(100, late, 1.0) == pytest.approx((late - 120.0) / 89)


def test_a_terminal_shows_the_time_left_too(tmp_path, val_store_dir):
    """A real terminal, 200 columns wide."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        command(tmp_path, val_store_dir, max_steps=2, warmup_steps=1),
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env=environment(),
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal ends with its last user
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.wait(timeout=60) == 0
    last = re.split(rb"[\r\n]+", shown.strip())[-1].decode()
    assert re.match(r"step 2/2\|.*\| \[\d+:\d+, epoch 0\.\d\d  .* tokens  loss .*  eta 00:00\]", last), last
