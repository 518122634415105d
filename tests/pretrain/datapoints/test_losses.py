"""What the log's losses say of groups, steps and documents, against counting over an export, line by line."""

import tracemalloc
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_gpt.errors import InputError
from pretrain.datapoints import document_losses
from pretrain.datapoints.document_losses import SHORTEST, rank_documents
from pretrain.datapoints.files import RunLog
from pretrain.datapoints.loss_tables import loss_table
from pretrain.datapoints.losses import Steps, losses_by_group, losses_by_step
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.reports import export_parquet
from pretrain.datapoints.segments import scan
from tests.pretrain.feeding import log_steps, open_data

LAST = 300
IN_VIEW = Steps(12, 280)
WITHOUT = range(41, 51)  # steps of which no losses are logged


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, train_store_dir, val_store_dir):
    """Both stores more than once, documents cut, parts of several lengths."""
    out_dir = tmp_path_factory.mktemp("run")
    data = open_data(f"{train_store_dir}:2", f"{val_store_dir}:1")
    log_steps(out_dir, data, 0, 40, commits={25, 40}, with_losses=True)
    log_steps(out_dir, data, 40, 50, commits={50})
    log_steps(out_dir, data, 50, LAST, commits={120, LAST}, with_losses=True)
    return out_dir


@pytest.fixture(scope="module")
def replay(run_dir):
    return Replay(run_dir)


@pytest.fixture(scope="module")
def lines(replay, run_dir, tmp_path_factory):
    """The segments in view that have a loss, as dictionaries; ids are unique in these stores."""
    output = tmp_path_factory.mktemp("export") / "log.parquet"
    export_parquet(replay, output)
    exported = pq.read_table(output).to_pylist()
    in_view = [line for line in exported if IN_VIEW.first <= line["iter_num"] <= IN_VIEW.last]
    assert {line["iter_num"] for line in in_view if np.isnan(line["loss"])} == set(WITHOUT)
    return [line for line in in_view if not np.isnan(line["loss"])]


def mean(lines):
    return sum(line["loss"] * line["length"] for line in lines) / sum(line["length"] for line in lines)


def grouped(lines, key):
    groups = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return groups


def source_of(replay):
    """Of each document id the source."""
    stores = [packed.store for packed in replay.data(replay.log.periods[0]).stores]
    return {
        info.id: info.source
        for store in stores
        for shard in range(store.n_shards)
        for info in store.document_info(shard, np.arange(store.manifest.shards[shard].n_documents))
    }


@pytest.mark.parametrize("by", ["store", "source", "length"])
def test_groups(replay, lines, by):
    source = source_of(replay)
    keys = {
        "store": lambda line: line["store"],
        "source": lambda line: source[line["data_id"]],
        "length": lambda line: line["length"].bit_length(),
    }
    found = losses_by_group(replay, IN_VIEW, by)
    expected = grouped(lines, keys[by])
    assert len(found.sums) == len(expected) > 1
    assert found.known == len(lines)
    assert found.unknown == sum(group["step"].size for group in scan(replay, WITHOUT[0], WITHOUT[-1]))
    for name, sums in found.sums.items():
        key = int(name.split("-")[0].split()[0].replace(",", "")).bit_length() if by == "length" else name
        for of_part, part in zip(sums, IN_VIEW.parts(), strict=True):
            own = [line for line in expected[key] if part.first <= line["iter_num"] <= part.last]
            assert of_part[:2].tolist() == [len(own), sum(line["length"] for line in own)]
            if own:
                assert of_part[2] / of_part[1] == pytest.approx(mean(own))


def test_steps(replay, lines):
    [sums] = losses_by_step(replay, IN_VIEW).sums.values()
    by_step = grouped(lines, lambda line: line["iter_num"])
    for step, (segments, targets, losses) in enumerate(sums, IN_VIEW.first):
        assert segments == len(by_step[step])
        assert losses / targets == pytest.approx(mean(by_step[step])) if segments else step in WITHOUT
    printed = list(loss_table(replay, IN_VIEW, "step", 3, lowest=True))
    lowest = sorted((step for step in by_step if by_step[step]), key=lambda step: mean(by_step[step]))
    assert [int(line.split()[0]) for line in printed[1:4]] == lowest[:3]
    assert "segment(s) have no loss" in printed[4]


@pytest.mark.parametrize("max_bytes", [1, 2_000_000_000])
@pytest.mark.parametrize("lowest", [False, True])
def test_documents_and_their_repeats_whatever_the_number_of_passes(
    replay, lines, monkeypatch, lowest, max_bytes
):
    monkeypatch.setattr(document_losses, "MAX_BYTES", max_bytes)
    by_document = grouped(lines, lambda line: line["data_id"])
    long_enough = {
        name: own for name, own in by_document.items() if sum(n["length"] for n in own) >= SHORTEST
    }
    ranking = rank_documents(replay, IN_VIEW, top=30, lowest=lowest)
    assert ranking.known == len(lines)
    ranked = sorted(map(mean, long_enough.values()), reverse=not lowest)
    assert [line.loss for line in ranking.top] == pytest.approx(ranked[:30])
    for line in ranking.top:
        own = long_enough[line.store.document_info(line.shard, np.array([line.document]))[0].id]
        assert (line.loss, line.targets) == (pytest.approx(mean(own)), sum(n["length"] for n in own))

    def begins(own):
        return sorted((n["iter_num"], n["loss"]) for n in own if n["start"] == 0)

    again = {name: begins(own) for name, own in long_enough.items() if len(begins(own)) > 1}
    assert len(again) > 30
    falls = sorted((own[0][1] - own[-1][1] for own in again.values()), reverse=not lowest)
    ranking = rank_documents(replay, IN_VIEW, top=30, repeats=True, lowest=lowest)
    assert [line.rank for line in ranking.top] == pytest.approx(falls[:30])
    for line in ranking.top:
        own = again[line.store.document_info(line.shard, np.array([line.document]))[0].id]
        first_and_last = (line.first_step, line.first_loss, line.last_step, line.last_loss)
        assert (line.times, *first_and_last) == (len(own), *own[0], *own[-1])
    times = grouped(filter(None, map(begins, by_document.values())), len)
    assert {n: counted[0] for n, counted in ranking.by_times.items()} == {
        n: len(own) for n, own in times.items()
    }
    assert ranking.by_times[2][1:] == pytest.approx([sum(own[at][1] for own in times[2]) for at in (0, -1)])


@pytest.mark.parametrize("text", ["", "5", "0-3", "7-3", "301-400", "a-b", "1-2-3"])
def test_odd_steps_are_refused(text):
    with pytest.raises(InputError, match=r"--steps .*: give A-B, steps of the log, which ends at step 300"):
        Steps.parse(text, LAST)


@pytest.mark.parametrize("steps", [Steps(1, 1), Steps(3, 9), Steps(12, 280), Steps(1, 1000)])
def test_the_parts_are_what_part_of_says(steps):
    numbers = steps.part_of(np.arange(steps.first, steps.last + 1))
    parts = [n for n, part in enumerate(steps.parts()) for _ in range(part.size)]
    assert numbers.tolist() == parts


def test_a_log_without_losses_says_so(replay):
    with pytest.raises(InputError, match="has no losses of steps 41-50"):
        list(loss_table(replay, Steps(41, 50), "source", 5, lowest=False))


def test_a_scan_holds_one_group_of_rows_however_long_the_log(tmp_path, train_store_dir):
    data = open_data(train_store_dir)
    log_steps(tmp_path, data, 0, 1000, commits=range(50, 1001, 50), with_losses=True)
    replay = Replay(tmp_path)
    peaks = []
    for last in (50, 1000):
        arrow = pa.total_allocated_bytes()
        tracemalloc.start()
        held = max(pa.total_allocated_bytes() - arrow for group in scan(replay, 1, last) if group.loss.size)
        peaks.append(tracemalloc.get_traced_memory()[1] + held)
        tracemalloc.stop()
    assert len(RunLog(tmp_path).parts) == 20
    assert peaks[1] < 3 * peaks[0]
