"""The datapoint log: each step once, whatever is killed, provable from the store, and small."""

import re
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from pretrain.data.numbering import Numbering
from pretrain.datapoints import log as datapoint_log
from pretrain.datapoints.files import RunLog, part_files, read_row_groups, write_part
from pretrain.datapoints.log import DatapointLog
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import scan
from scripts.faults.ports import free_ports
from tests.pretrain import log_rank
from tests.pretrain.feeding import (
    GLOBAL_BATCH,
    feed,
    flip,
    log_steps,
    losses_as_fed,
    made_up_loss,
    open_data,
    verify,
    whole,
)
from tests.pretrain.ranks import run_ranks
from tests.pretrain.saving import file_size_limit


@pytest.fixture(scope="module")
def data(train_store_dir, val_store_dir):
    return open_data(f"{train_store_dir}:3", f"{val_store_dir}:1")


def test_a_run_verifies_and_knows_its_skipped_steps(tmp_path, data):
    log_steps(tmp_path, data, 0, 20, commits={7, 14, 20}, skipped={3, 14})
    report = verify(tmp_path)
    assert report.messages == []
    assert (report.steps, report.rows) == (20, 20 * GLOBAL_BATCH)
    assert report.segments == len(whole(tmp_path)["document"].combine_chunks().flatten())
    table = whole(tmp_path)
    assert set(table.filter(pa.compute.invert(table["applied"]))["step"].to_pylist()) == {3, 14}
    assert RunLog(tmp_path).step_rows(14)["sample"].to_pylist() == list(
        range(13 * GLOBAL_BATCH, 14 * GLOBAL_BATCH)
    )


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sets(st.integers(1, 40))), max_size=5))
def test_killed_and_resumed_anywhere_no_step_is_twice_and_none_missing(data, tmp_path_factory, lives):
    """Each life resumes after a step that is in the log, runs on, commits at times, and is killed."""
    run_dir = tmp_path_factory.mktemp("run")
    straight = tmp_path_factory.mktemp("straight")
    committed = 0
    for back, ahead, commits in lives:
        resumed = max(0, committed - back)
        log_steps(run_dir, data, resumed, resumed + ahead, commits)
        committed = max([step for step in commits if resumed < step <= resumed + ahead], default=resumed)
    log_steps(run_dir, data, committed, committed + 3, {committed + 3})
    log_steps(straight, data, 0, committed + 3, {committed + 3})
    assert whole(run_dir).equals(whole(straight))
    assert verify(run_dir).messages == []


def test_losses_are_those_of_the_segments_through_cuts_and_beside_parts_without(tmp_path, data):
    log_steps(tmp_path, data, 0, 20, commits={10, 20})
    log_steps(tmp_path, data, 13, 40, commits={30, 40}, with_losses=True)
    log_steps(tmp_path, data, 34, 36, commits={36})
    logged = list(scan(Replay(tmp_path)))
    assert sum(group.loss.size for group in logged) == verify(tmp_path).segments
    for group in logged:
        step, rows = group["step"], group.rows
        of_step = made_up_loss(step, rows.document, rows.start)
        expected = np.where((step > 13) & (step <= 34), of_step, np.float32("nan"))
        assert np.array_equal(group.loss, expected, equal_nan=True)
    assert {int(step) for group in scan(Replay(tmp_path), 12, 36) for step in group["step"]} == {
        *range(12, 37)
    }
    assert [part.name[5:13] for part in RunLog(tmp_path).parts_of(12, 20)] == ["00000011", "00000014"]
    assert verify(tmp_path).messages == []


def test_a_part_is_cut_exactly_and_nothing_is_thrown_away(tmp_path, data):
    log_steps(tmp_path, data, 0, 20, commits={10, 20})
    before = whole(tmp_path)
    log = DatapointLog(tmp_path, data.describe(), numbering=Numbering(GLOBAL_BATCH))
    log.discard_after(6)
    log.discard_after(6)
    folder = tmp_path / "datapoints"
    assert [part.name for part in part_files(folder)] == ["part-00000001-node-000.parquet"]
    assert sorted(path.name for path in (folder / "discarded").iterdir()) == [
        "part-00000007-node-000.parquet",
        "part-00000011-node-000.parquet",
    ]
    assert whole(tmp_path).equals(before.slice(0, 6 * GLOBAL_BATCH))
    discarded = pa.concat_tables(map(pq.read_table, sorted((folder / "discarded").iterdir())))
    assert discarded.equals(before.slice(6 * GLOBAL_BATCH))
    log_steps(tmp_path, data, 6, 20, commits={20})
    log.discard_after(0)
    assert len(list((folder / "discarded").iterdir())) == 4


def test_what_a_kill_leaves_unfinished_has_no_effect(tmp_path, data):
    log_steps(tmp_path, data, 0, 10, commits={10})
    folder = tmp_path / "datapoints"
    rest = folder / "part-00000011-node-000.parquet.tmp"
    rest.write_bytes((folder / "part-00000001-node-000.parquet").read_bytes()[:1000])
    assert verify(tmp_path).messages == []
    log_steps(tmp_path, data, 10, 12, commits={12})
    assert not rest.exists()
    assert verify(tmp_path).steps == 12


def test_data_that_changed_at_a_resume_is_another_period(tmp_path, data, train_store_dir):
    log_steps(tmp_path, data, 0, 5, commits={5})
    other = open_data(train_store_dir, seed=8)
    log_steps(tmp_path, other, 5, 9, commits={9})
    log_steps(tmp_path, other, 9, 12, commits={12})
    assert [period.first_step for period in RunLog(tmp_path).periods] == [1, 6]
    assert verify(tmp_path).messages == []
    log_steps(tmp_path, data, 5, 9, commits={9})
    assert [period.first_step for period in RunLog(tmp_path).periods] == [1]
    assert verify(tmp_path).messages == []


def test_another_global_batch_size_is_refused(tmp_path, data):
    log_steps(tmp_path, data, 0, 5, commits={5})
    log = DatapointLog(tmp_path, data.describe(), numbering=Numbering(8))
    with pytest.raises(InputError, match="global_batch_size 6, not 8"):
        log.discard_after(5)
    log.discard_after(0)


# ---- faults


@pytest.fixture
def run_dir(tmp_path, data):
    log_steps(tmp_path, data, 0, 10, commits={5, 10})
    return tmp_path


def test_a_damaged_part_is_named(run_dir):
    part = part_files(run_dir / "datapoints")[1]
    content, table = part.read_bytes(), pq.read_table(part)
    found = 0
    for offset in range(0, len(content), 97):
        flip(part, offset)
        try:
            # A byte that no reader looks at, of a page's header for instance, may pass.
            assert verify(run_dir).differences or pq.read_table(part).equals(table)
        except InputError as error:
            assert "part-00000006-node-000.parquet" in str(error)  # noqa: PT017
            found += 1
        flip(part, offset)
    assert found > len(content) / 97 / 2
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"part-00000006-node-000\.parquet is damaged"):
        RunLog(run_dir)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("shard", "logged as store"),
        ("row", "logged as store"),
        ("store", "logged as store"),
        ("checksum", "checksum [0-9a-f]{16} is logged, the tokens of row"),
        ("sample", "sample 30 is not logged"),
        ("step", "step 7: sample 30 is not one of this step's"),
        ("document", "its segments are not those of the packing"),
        ("start", "its segments are not those of the packing"),
        ("length", "its segments are not those of the packing"),
    ],
)
def test_one_changed_value_of_one_row_is_found(run_dir, column, message):
    part = part_files(run_dir / "datapoints")[1]
    table = pq.read_table(part)
    values = table[column].to_pylist()
    values[0] = [values[0][0] + 1, *values[0][1:]] if isinstance(values[0], list) else values[0] ^ 1
    at = table.schema.get_field_index(column)
    write_part(part, table.set_column(at, table.schema.field(at), pa.array(values, table.schema.types[at])))
    report = verify(run_dir)
    assert report.differences >= 1
    assert any(re.search(message, text) for text in report.messages), report.messages


def test_one_changed_token_of_the_store_is_found(tmp_path, train_store_dir):
    store_dir = shutil.copytree(train_store_dir, tmp_path / "store")
    log_steps(tmp_path, open_data(store_dir), 0, 10, commits={10})
    logged = next(read_row_groups(part_files(tmp_path / "datapoints")[0]))
    shard, row = logged["shard"][17].as_py(), logged["row"][17].as_py()
    data = open_data(store_dir)
    packing = data.stores[0].rows(shard)
    segment = int(packing.offsets[row])
    token = int(data.stores[0].store.pointers(shard)[packing.document[segment]] + packing.start[segment])
    flip(store_dir / f"shard-{shard:05d}.bin", 2 * token)
    report = verify(tmp_path)
    assert report.differences == 1
    assert "step 3, sample 17: checksum" in report.messages[0]
    assert f"row {row} of shard {shard} in {store_dir}" in report.messages[0]


def test_missing_and_repeated_steps_are_named(run_dir, data):
    first, second = part_files(run_dir / "datapoints")
    moved = run_dir / "elsewhere"
    first.rename(moved)
    assert verify(run_dir).messages == ["step 1: sample 0 is not logged"]
    moved.rename(first)
    shutil.copy(second, second.with_name("part-00000006-node-001.parquet"))
    assert verify(run_dir).messages == ["step 6: sample 30 is logged more than once"]


def test_what_the_disk_refuses_is_kept_and_written_with_the_next_steps(tmp_path, data, monkeypatch):
    log = DatapointLog(tmp_path, data.describe(), numbering=Numbering(GLOBAL_BATCH))
    log.discard_after(0)
    loader = feed(data)

    def feed_to(step: int) -> Callable[[], None]:
        rows = next(loader).rows
        while log.record(rows, 1.7e9) or rows.step < step:
            rows = next(loader).rows
        return log.take(step, {step})

    folder = tmp_path / "datapoints"
    feed_to(10)()
    with file_size_limit(2000), pytest.raises(OSError, match=r"too large.*part-00000011-node-000\.parquet"):
        feed_to(200)()
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == [
        "part-00000001-node-000.parquet"
    ]
    assert not log.too_much_waits
    monkeypatch.setattr(datapoint_log, "MAX_WAITING_BYTES", 1000)
    assert log.too_much_waits
    feed_to(210)()
    assert not log.too_much_waits
    assert verify(tmp_path).messages == []
    assert verify(tmp_path).steps == 210
    skipped = whole(tmp_path).filter(pa.compute.invert(whole(tmp_path)["applied"]))
    assert set(skipped["step"].to_pylist()) == {10, 200, 210}


# ---- size


def test_it_takes_at_most_eight_bytes_a_segment(tmp_path, train_store_dir):
    data = open_data(train_store_dir, block_size=1024)
    log = DatapointLog(tmp_path, data.describe(), numbering=Numbering(64), with_losses=True)
    log.discard_after(0)
    loader = feed(data, global_batch_size=64)
    for step in range(1, 51):
        rows = next(loader).rows
        losses = [(3 + 0.7 * torch.randn_like(part)) for part in losses_as_fed(rows, 1024)]
        log.record(rows, 1.7e9 + 0.731 * step, losses)
    log.commit(50)
    size = sum(file.stat().st_size for file in (tmp_path / "datapoints").iterdir())
    assert size <= 8 * verify(tmp_path).segments


# ---- several ranks


@pytest.mark.slow
def test_nodes_write_a_part_each_and_another_number_of_them_goes_on(tmp_path, train_store_dir, data):
    for nodes, per_node, steps in [(1, 3, range(1, 11)), (2, 1, range(8, 11))]:
        ports = free_ports(1)
        run_ranks(log_rank.run, nodes * per_node, *ports, train_store_dir, tmp_path, nodes, per_node, steps)
    names = [part.name for part in part_files(tmp_path / "datapoints")]
    assert names == [
        f"part-{step:08d}-node-00{node}.parquet" for step, node in [(1, 0), (6, 0), (8, 0), (8, 1)]
    ]
    straight = tmp_path / "straight"
    log_steps(straight, open_data(train_store_dir), 0, 10, {10})
    report = verify(tmp_path)
    assert report.messages == []
    assert report.steps == 10
    same = [name for name in whole(straight).column_names if name != "rank"]
    assert whole(tmp_path).select(same).equals(whole(straight).select(same))
    ranks = whole(tmp_path)["rank"].to_numpy().reshape(10, GLOBAL_BATCH)
    assert np.array_equal(ranks[:7], np.tile([0, 0, 1, 1, 2, 2], (7, 1)))
    assert np.array_equal(ranks[7:], np.tile([0, 0, 0, 1, 1, 1], (3, 1)))
