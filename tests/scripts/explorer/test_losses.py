"""Losses by store, documents seen often, and what is not there or damaged, without training and browser."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from lit_gpt.errors import InputError
from lit_gpt.store.shard_files import DocumentInfo
from scripts.explorer.reading import MAX_SEEN, Document, Reading, Seen, segments_of
from scripts.explorer.runs import open_runs
from scripts.explorer.server import make_app
from scripts.explorer.tables import document_summary, segment_table, step_summary
from tests.pretrain.feeding import log_steps, open_data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, train_store_dir, val_store_dir):
    """Two stores whose folders have one name."""
    folder = tmp_path_factory.mktemp("logged")
    other = folder / train_store_dir.name
    shutil.copytree(val_store_dir, other)
    log_steps(folder, open_data(f"{train_store_dir}:2", f"{other}:1"), 0, 9, commits={9}, with_losses=True)
    return folder


def test_stores_of_one_name_are_told_apart(run_dir, train_store_dir):
    reading = Reading(run_dir)
    losses = reading.losses(1, 9)
    names = {f"{folder.name}/{train_store_dir.name}" for folder in (train_store_dir.parent, run_dir)}
    assert losses.over_time("store", 9).keys() == names
    segments, shown = segments_of(reading.step(9)), reading.store_names()
    assert {shown[segment.store.path] for segment in segments} == names
    cells = str(segment_table(segments, 1, shown))
    assert all(f"Td('{name}')" in cells for name in names)


def test_losses_are_not_read_again_before_more_are_logged(run_dir):
    reading = Reading(run_dir)
    assert reading.losses(1, 500) is reading.losses(1, 501)
    assert reading.losses(1, 500).last == 9
    assert not reading.losses(10, 500).values


@pytest.mark.parametrize("step", [0, -1, 10**13, 10**30])
def test_there_is_no_such_step(run_dir, step):
    with pytest.raises(InputError, match="steps are counted from 1"):
        Reading(run_dir).step(step)


def test_of_a_document_seen_often_the_steps_around_now_are_listed():
    store = SimpleNamespace(path="store")
    seen = [Seen(step, step, 0, 9, 1.5 if 300 < step <= 400 else None) for step in range(1, 1001)]
    document = Document(store, 0, 0, DocumentInfo("id", "source", 1, 10), seen, last_logged=400)
    shown = str(document_summary(document, 400, 1000))
    assert shown.count("1.500") == MAX_SEEN
    assert shown.count("'to come'") == MAX_SEEN
    assert "not logged" not in shown
    unsaved = str(document_summary(document._replace(last_logged=390), 400, 1000))
    assert (unsaved.count("1.500"), unsaved.count("not yet logged")) == (MAX_SEEN - 10, 10)
    assert "Seen 400 times until step 400; 600 times to come until step 1,000. Shown are" in shown


def test_masked_labels_are_no_targets_and_have_no_loss(tmp_path, train_store_dir, masked_store_dir):
    data = open_data(f"{train_store_dir}:1", f"{masked_store_dir}:1")
    log_steps(tmp_path, data, 0, 9, commits={9}, with_losses=True)
    step = Reading(tmp_path).step(9)
    segments = segments_of(step)
    counted = sum(int((tokens[1:].astype(np.int64) >= 0).sum()) for row in step.rows for tokens in row.tokens)
    assert 0 < counted < sum(segment.length for segment in segments)
    assert f" {counted:,} targets" in str(step_summary("run", 9, step, segments, None))
    shown = str(segment_table([segments[0]._replace(loss=math.nan)], 1, {segments[0].store.path: "a"}))
    assert "Td('none')" in shown
    assert "nan" not in shown


def test_a_damaged_line_is_told_and_what_was_read_stays(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\r\n1,2.5\r\n")
    runs = open_runs([tmp_path])
    make_app(runs, [Reading(tmp_path)])
    file.write_text("step,loss\r\n1,2.5\r\nx,y\r\n")
    runs[0].refresh()
    assert f"{file} is damaged" in runs[0].state()
    assert runs[0].last_step == 1
    file.write_text("step,loss\r\n1,2.5\r\n2,2.4\r\n")
    runs[0].refresh()
    assert "damaged" not in runs[0].state()
    assert runs[0].last_step == 2
