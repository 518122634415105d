"""The log of a run of several stages: each step once in its stage, proved and searched across borders."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import InputError
from pretrain.data.numbering import Numbering
from pretrain.datapoints.files import RunLog, part_files, write_part
from pretrain.datapoints.log import DatapointLog
from pretrain.datapoints.periods import Gap
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.reports import export_jsonl, export_parquet
from pretrain.datapoints.search import Occurrence, find_document, occurrences_by_log, occurrences_by_order
from tests.pretrain.datapoints.staged import LAST, LoggedStage, log_stages
from tests.pretrain.feeding import log_steps, verify, whole


@pytest.fixture
def run_dir(tmp_path, logged):
    return shutil.copytree(logged, tmp_path / "run")


def test_every_stage_verifies_and_no_sample_is_left_out_at_a_border(logged, stages):
    report = verify(logged)
    assert report.messages == []
    assert (report.steps, report.rows) == (110, 60 * 6 + 10 * 4 + 40 * 10)
    assert whole(logged)["sample"].to_pylist() == list(range(report.rows))
    periods = RunLog(logged).periods
    assert [(p.name, p.first_step, p.numbering) for p in periods] == [
        (stage.name, stage.numbering.steps_before + 1, stage.numbering) for stage in stages
    ]


lives = st.tuples(st.integers(0, 40), st.integers(0, 60), st.sets(st.integers(1, LAST)))


@settings(deadline=None, max_examples=12)
@given(st.lists(lives, max_size=4))
def test_killed_and_resumed_anywhere_no_step_is_twice_and_none_missing(
    stages, logged, tmp_path_factory, lives
):
    """Each life resumes after a step that is in the log, runs on, commits at times, and is killed."""
    run_dir = tmp_path_factory.mktemp("lives")
    committed = 0
    for back, ahead, commits in lives:
        resumed = max(0, committed - back)
        log_stages(run_dir, stages, resumed, resumed + ahead, commits)
        borders = {stage.last_step for stage in stages}
        reached = range(resumed + 1, min(resumed + ahead, LAST) + 1)
        committed = max([step for step in reached if step in commits | borders], default=resumed)
    log_stages(run_dir, stages, committed, LAST)
    assert whole(run_dir).equals(whole(logged))
    assert (run_dir / "datapoints/data.json").read_bytes() == (logged / "datapoints/data.json").read_bytes()
    assert verify(run_dir).messages == []


def test_a_stage_keeps_its_batch_size_and_another_may_have_its_own(run_dir, stages):
    _, long, anneal = stages
    for name in (long.name, "renamed"):
        log = DatapointLog(run_dir, long.data.describe(), stage=name, numbering=Numbering(8, 60, 360))
        with pytest.raises(InputError, match="written with global_batch_size 4, not 8"):
            log.discard_after(65)
    other = Numbering(16, 70, 400)
    DatapointLog(run_dir, anneal.data.describe(), stage="other", numbering=other).discard_after(70)
    assert RunLog(run_dir).periods[-1].numbering == other


def test_stages_may_follow_a_run_that_had_none(tmp_path, stages):
    adapt, long, _ = stages
    log_steps(tmp_path, adapt.data, 0, 60, commits={60})
    log_stages(tmp_path, [long], 60, 70)
    assert [period.name for period in RunLog(tmp_path).periods] == ["", "long"]
    assert verify(tmp_path).messages == []


# ---- faults


@pytest.mark.parametrize("part", range(6))
def test_a_changed_value_is_found_in_every_stage(run_dir, part):
    path = part_files(run_dir / "datapoints")[part]
    table = pq.read_table(path)
    for column in ("store", "shard", "row", "checksum", "sample", "step", "document", "start", "length"):
        values = table[column].to_pylist()
        values[-1] = [values[-1][0] + 1, *values[-1][1:]] if isinstance(values[-1], list) else values[-1] ^ 1
        at = table.schema.get_field_index(column)
        changed = pa.array(values, table.schema.types[at])
        write_part(path, table.set_column(at, table.schema.field(at), changed))
        assert verify(run_dir).differences >= 1, column
    write_part(path, table)
    assert verify(run_dir).differences == 0


@pytest.mark.parametrize(
    ("part", "steps", "first_sample", "rows"),
    [
        (0, "1-25", 0, 150),
        (1, "26-60", 150, 210),
        (2, "61-65", 360, 20),
        (3, "66-70", 380, 20),
        (4, "71-100", 400, 300),
    ],
)
def test_lost_steps_are_named_by_the_numbers_of_their_stage(run_dir, stages, part, steps, first_sample, rows):
    path = part_files(run_dir / "datapoints")[part]
    path.unlink()
    report = verify(run_dir)
    first, last = map(int, steps.split("-"))
    assert report.messages == [f"step {first}: sample {first_sample} is not logged"]
    assert report.differences == rows
    anneal = stages[-1]
    log = DatapointLog(run_dir, anneal.data.describe(), stage=anneal.name, numbering=anneal.numbering)
    with pytest.raises(InputError, match=rf"lost rows of steps {steps}: restore"):
        log.discard_after(LAST, was_logged=True)
    log.discard_after(LAST, was_logged=True, accept_gap=True)
    assert RunLog(run_dir).gaps == [Gap(first, last, "log lost")]
    report = verify(run_dir)
    assert (report.messages, report.steps) == ([], 110 - (last - first + 1))


def test_a_gap_may_cross_a_border(run_dir, stages):
    for part in part_files(run_dir / "datapoints")[1:5]:
        part.unlink()
    anneal = stages[-1]
    log = DatapointLog(run_dir, anneal.data.describe(), stage=anneal.name, numbering=anneal.numbering)
    log.discard_after(LAST, was_logged=True, accept_gap=True)
    assert list(map(str, RunLog(run_dir).gaps)) == ["steps 26-100: log lost"]
    report = verify(run_dir)
    assert (report.messages, report.steps, report.rows) == ([], 35, 25 * 6 + 10 * 10)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (1, {"steps_before": 59}),
        (1, {"global_batch_size": 5}),
        (2, {"first_sample": 401}),
        (2, {"position": 7}),
        (2, {"number": 5}),
    ],
)
def test_a_changed_number_of_a_stage_is_found(run_dir, stage, change):
    path = run_dir / "datapoints/data.json"
    content = json.loads(path.read_text())
    segment = content["segments"][stage]
    for part in (segment, segment["data"], segment["data"]["stores"][0]):
        part |= {name: value for name, value in change.items() if name in part}
    path.write_text(json.dumps(content))
    assert verify(run_dir).differences > 0


def test_stores_that_moved_are_recognised_in_every_stage(logged, train_store_dir, val_store_dir, tmp_path):
    moved = [shutil.copytree(store, tmp_path / store.name) for store in (val_store_dir, train_store_dir)]
    replay = Replay(logged, list(map(str, moved)))
    assert list(replay.verify())[-1].messages == []
    paths = [[packed.store.path for packed in replay.data(p).stores] for p in replay.log.periods]
    assert paths == [[*reversed(moved)], [*reversed(moved)], moved]
    with pytest.raises(InputError, match=r"no longer what the run read: none of these is .*/train:1"):
        list(Replay(logged, [str(moved[0])]).verify())


# ---- documents


def occurrences_by_reading(run_dir: Path, stages: list[LoggedStage]) -> dict[str, list[Occurrence]]:
    """By id, from the rows one by one, with nothing of the reader's arithmetic."""
    found = defaultdict(list)
    for row in whole(run_dir).to_pylist():
        data = next(stage.data for stage in stages if row["step"] <= stage.last_step)
        infos = data.stores[row["store"]].store.document_info(row["shard"], np.array(row["document"]))
        for info, start, length in zip(infos, row["start"], row["length"], strict=True):
            found[info.id].append(Occurrence(row["step"], row["sample"], start, length))
    return found


def test_a_document_is_found_in_all_stages_by_order_and_by_log(logged, stages):
    replay, by_reading = Replay(logged), occurrences_by_reading(logged, stages)
    again = [
        name
        for name, occurrences in by_reading.items()
        if len({int(np.searchsorted([60, 70], occurrence.step)) for occurrence in occurrences}) == 3
    ]
    assert len(again) > 5
    for name in [*again[:6], *list(by_reading)[::40]]:
        documents = find_document(replay, name)
        assert len(documents) == 3
        assert occurrences_by_order(replay.log, documents) == sorted(by_reading[name])
        assert occurrences_by_log(replay.log, documents) == sorted(by_reading[name])


def test_exports_are_complete(logged, stages, tmp_path, capsys):
    by_reading = occurrences_by_reading(logged, stages)
    export_parquet(Replay(logged), tmp_path / "log.parquet")
    exported = defaultdict(list)
    for line in pq.read_table(tmp_path / "log.parquet").to_pylist():
        where = line["iter_num"], line["sample"], line["start"], line["length"]
        exported[line["data_id"]].append(Occurrence(*where))
    assert exported == by_reading
    export_jsonl(Replay(logged), tmp_path / "log.jsonl")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == LAST
