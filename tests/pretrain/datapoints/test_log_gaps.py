"""A log that has lost files: refused at a resume, or continued with the gap noted in it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lit_gpt.cli import InputError
from pretrain.data.numbering import Numbering
from pretrain.datapoints.files import RunLog, part_files, part_name, write_part
from pretrain.datapoints.log import DatapointLog
from pretrain.datapoints.periods import Gap
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.search import Occurrence, find_document, occurrences_by_log, occurrences_by_order
from tests.pretrain.feeding import GLOBAL_BATCH, feed, flip, log_steps, open_data, verify
from tests.pretrain.running import ROOT, open_run, train


@pytest.fixture(scope="module")
def data(train_store_dir):
    return open_data(train_store_dir)


@pytest.fixture
def run_dir(tmp_path, data):
    """Twenty steps in four parts."""
    log_steps(tmp_path, data, 0, 20, commits={5, 10, 15, 20})
    return tmp_path


def resume(run_dir, data, step: int, was_logged: bool = True, accept_gap: bool = False) -> DatapointLog:
    log = DatapointLog(run_dir, data.describe(), numbering=Numbering(GLOBAL_BATCH))
    log.discard_after(step, was_logged, accept_gap)
    return log


def log_on(log: DatapointLog, data, after: int, last: int) -> None:
    loader = feed(data, first_step=after + 1)
    for step in range(after + 1, last + 1):
        log.record(next(loader).rows, 1.7e9 + step)
    log.commit(last)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_log_is_continued(run_dir, data):
    for step in (20, 13):
        resume(run_dir, data, step)
        assert RunLog(run_dir).gaps == []


@pytest.mark.parametrize(
    ("lost", "steps"), [([0], "1-5"), ([1], "6-10"), ([3], "16-20"), ([0, 2], "1-5, 11-15"), ([1, 2], "6-15")]
)
def test_lost_parts_are_named_and_nothing_is_changed(run_dir, data, lost, steps):
    parts = part_files(run_dir / "datapoints")
    for number in lost:
        parts[number].unlink()
    before = contents(run_dir)
    with pytest.raises(InputError, match=rf"lost rows of steps {steps}: restore .* --accept_log_gap"):
        resume(run_dir, data, 20)
    assert contents(run_dir) == before


def test_what_is_later_than_the_checkpoint_may_be_lost(run_dir, data):
    part_files(run_dir / "datapoints")[3].unlink()
    resume(run_dir, data, 15)


def test_an_accepted_gap_is_noted_and_verified_around(run_dir, data):
    part_files(run_dir / "datapoints")[1].unlink()
    log_on(resume(run_dir, data, 20, accept_gap=True), data, 20, 25)
    assert list(map(str, RunLog(run_dir).gaps)) == ["steps 6-10: log lost"]
    report = verify(run_dir)
    assert report.messages == []
    assert (report.steps, report.rows) == (20, 20 * GLOBAL_BATCH)

    resume(run_dir, data, 25)  # needs no flag any more
    part_files(run_dir / "datapoints")[0].unlink()
    with pytest.raises(InputError, match="steps 1-5"):
        resume(run_dir, data, 25)
    assert verify(run_dir).messages == ["step 1: sample 0 is not logged"]

    resume(run_dir, data, 8, accept_gap=True)  # a gap ends where the run goes on
    assert RunLog(run_dir).gaps == [Gap(1, 5, "log lost"), Gap(6, 8, "log lost")]


def occurrences(run_dir, document_id: str) -> tuple[list[Occurrence], list[Occurrence]]:
    replay = Replay(run_dir)
    documents = find_document(replay, document_id)
    return occurrences_by_log(replay.log, documents), occurrences_by_order(replay.log, documents)


def test_a_document_is_found_around_a_gap(run_dir, data):
    logged = next(iter(pq.ParquetFile(part_files(run_dir / "datapoints")[1]).iter_batches(1)))
    store = data.stores[0].store
    [info] = store.document_info(logged["shard"][0].as_py(), logged["document"].flatten().to_numpy()[:1])
    before, by_order = occurrences(run_dir, info.id)
    assert before == by_order
    part_files(run_dir / "datapoints")[1].unlink()
    resume(run_dir, data, 20, accept_gap=True)
    found, by_order = occurrences(run_dir, info.id)
    assert found == by_order
    assert found == [occurrence for occurrence in before if not 6 <= occurrence.step <= 10] != before


def split_by_node(folder: Path, part: Path) -> list[Path]:
    """Make of a part two, as two nodes write them."""
    table = pq.read_table(part)
    first_half = pc.less(
        pc.subtract(table["sample"], pc.multiply(pc.subtract(table["step"], 1), GLOBAL_BATCH)), 3
    )
    names = [folder / part_name(table["step"][0].as_py(), node) for node in (0, 1)]
    for name, mine in zip(names, (first_half, pc.invert(first_half)), strict=True):
        write_part(name, table.filter(mine))
    return names


def test_the_part_of_one_node_is_missed(run_dir, data):
    folder = run_dir / "datapoints"
    for part in part_files(folder):
        nodes = split_by_node(folder, part)
    resume(run_dir, data, 20)
    nodes[1].unlink()
    with pytest.raises(InputError, match="lost rows of steps 16-20"):
        resume(run_dir, data, 20)
    log_on(resume(run_dir, data, 20, accept_gap=True), data, 20, 22)
    report = verify(run_dir)
    assert report.messages == []
    assert (report.steps, report.rows) == (17, 17 * GLOBAL_BATCH + 5 * GLOBAL_BATCH // 2)
    table = pq.read_table(nodes[0])
    wrong = pa.array(table["checksum"].to_numpy() ^ np.uint64(1))
    write_part(nodes[0], table.set_column(8, table.schema.field(8), wrong))
    assert verify(run_dir).differences == 5 * GLOBAL_BATCH // 2  # what is there is still compared


def test_a_damaged_part_is_put_away_where_that_is_accepted(run_dir, data):
    part = part_files(run_dir / "datapoints")[2]
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"part-00000011.* is damaged .*--accept_log_gap"):
        resume(run_dir, data, 20)
    resume(run_dir, data, 20, accept_gap=True)
    assert RunLog(run_dir).gaps == [Gap(11, 15, "log lost")]
    assert (run_dir / "datapoints/discarded" / part.name).exists()
    assert verify(run_dir).messages == []


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: flip(path, 0)]
)
def test_data_json_lost(run_dir, data, damage):
    damage(run_dir / "datapoints/data.json")
    for was_logged in (True, False):
        with pytest.raises(InputError, match=r"data\.json .*--accept_log_gap"):
            resume(run_dir, data, 20, was_logged)
    log_on(resume(run_dir, data, 20, accept_gap=True), data, 20, 23)
    assert RunLog(run_dir).gaps == [Gap(1, 20, "log lost")]
    assert [part.name for part in part_files(run_dir / "datapoints")] == [part_name(21, 0)]
    assert len(list((run_dir / "datapoints/discarded").glob("part-*"))) == 4
    report = verify(run_dir)
    assert (report.messages, report.steps) == ([], 3)


def test_a_run_begun_anew_needs_nothing(run_dir, data):
    (run_dir / "datapoints/data.json").unlink()
    log_on(resume(run_dir, data, 0), data, 0, 3)
    assert verify(run_dir).steps == 3


def test_a_log_that_begins_later_is_complete(tmp_path, data):
    log_on(resume(tmp_path, data, 7, was_logged=False), data, 7, 12)
    resume(tmp_path, data, 12)
    assert RunLog(tmp_path).gaps == []
    assert verify(tmp_path).messages == []


def test_everything_lost_is_told_from_never_logged(tmp_path, data):
    with pytest.raises(InputError, match=r"data\.json is missing"):
        resume(tmp_path, data, 7, was_logged=True)
    assert not (tmp_path / "datapoints").exists()


# ---- real runs

FLAGS = {"save_step_interval": 5, "eval_step_interval": 0, "keep_last": 0}


def verified(run_dir) -> str:
    arguments = [sys.executable, str(ROOT / "scripts/datapoints.py"), "verify", "--run", str(run_dir)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120).stdout


def lose_a_part(run_dir: Path, store: Path) -> None:
    """Fifteen steps in three parts, of which the second is lost."""
    open_run(run_dir, store, max_steps=15, **FLAGS).fit()
    part_files(run_dir / "datapoints")[1].unlink()


def assert_noted(run_dir: Path) -> None:
    out = verified(run_dir)
    assert "steps 6-10: log lost" in out
    assert "15 steps" in out


@pytest.mark.slow
def test_a_resume_refuses_or_notes_what_is_lost(tmp_path, train_store_dir):
    lose_a_part(tmp_path, train_store_dir)
    flags = FLAGS | {"resume": "auto", "max_steps": 20}
    refused = train(tmp_path, train_store_dir, **flags)  # in a process: it locks the folder to its end
    assert refused.returncode == 2
    assert re.search(r"has lost rows of steps 6-10: .*--accept_log_gap", refused.stderr)
    open_run(tmp_path, train_store_dir, accept_log_gap=True, **flags).fit()
    assert_noted(tmp_path)


@pytest.mark.slow
def test_the_command_refuses_or_notes_what_is_lost_on_two_ranks(tmp_path, train_store_dir):
    lose_a_part(tmp_path, train_store_dir)
    flags = FLAGS | {"devices": 2, "resume": "auto", "max_steps": 20}
    result = train(tmp_path, train_store_dir, **flags)
    assert result.returncode == 2
    assert "has lost rows of steps 6-10" in result.stderr
    assert "--accept_log_gap" in result.stderr
    assert "Traceback" not in result.stderr
    assert train(tmp_path, train_store_dir, accept_log_gap="true", **flags).returncode == 0
    assert_noted(tmp_path)


@pytest.mark.slow
def test_a_run_may_begin_without_log_and_pause_it(tmp_path, train_store_dir):
    for last, logged in [(5, False), (10, True), (15, False), (20, True), (25, True)]:
        flags = FLAGS | {"max_steps": last, "log_datapoints": logged, "resume": "auto"}
        open_run(tmp_path, train_store_dir, **flags).fit()
    assert json.loads((tmp_path / "datapoints/data.json").read_text())["gaps"] == [
        {"first_step": 11, "last_step": 15, "reason": "not logged"}
    ]
    assert "steps 11-15: not logged" in (out := verified(tmp_path))
    assert "15 steps" in out
