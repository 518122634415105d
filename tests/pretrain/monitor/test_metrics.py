"""metrics.csv: every bit, every step once, whatever was there before and whatever the disk does."""

import os
import shutil
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gpt.cli import InputError
from pretrain.monitor import boards
from pretrain.monitor.metrics import (
    COLUMNS,
    MetricsWriter,
    StepMetrics,
    ValidationLine,
    read_metrics,
    read_validation,
)
from pretrain.monitor.save_errors import SaveErrors
from tests.pretrain.saving import file_size_limit


def line(step, restart=0, loss=0.1):
    return StepMetrics(step, loss * step, 1.0, 1e-3, step * 8, 0, restart)


def open_writer(out_dir, first_step=1, policy="stop"):
    return MetricsWriter(out_dir, first_step, None, SaveErrors(policy, rank=0))


def write_run(out_dir, first_step, last_step):
    """Lines of some steps; returns the number of the restart."""
    writer = open_writer(out_dir, first_step)
    writer.write([line(step, writer.restart) for step in range(first_step, last_step + 1)])
    writer.close()
    return writer.restart


def steps(out_dir):
    return [row["step"] for row in read_metrics(out_dir / "metrics.csv")]


def test_lines_come_back_with_every_bit(tmp_path):
    writer = open_writer(tmp_path)
    writer.write([line(step, loss=1 / 3) for step in (1, 2)])
    writer.flush()
    first, second = read_metrics(tmp_path / "metrics.csv")
    assert (first["loss"], second["loss"]) == (1 / 3, 2 / 3)
    assert first["val_loss"] is None
    writer.close()


def test_a_continued_run_drops_the_steps_it_repeats(tmp_path):
    write_run(tmp_path, 1, 7)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,0.8,1.0,0.001,64,0,0,,,,,,,0.123")  # killed in the middle of the last cell
    assert steps(tmp_path) == list(range(1, 8))
    assert write_run(tmp_path, 5, 9) == 1
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["restart"] for row in rows] == [0] * 4 + [1] * 5


def test_a_new_run_starts_a_new_file(tmp_path):
    write_run(tmp_path, 1, 1)
    assert open_writer(tmp_path).restart == 0
    assert steps(tmp_path) == []


def test_a_missing_or_another_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a metrics file"):
        read_metrics(tmp_path / "metrics.csv")
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "other.csv")


def test_a_revision_with_fewer_or_more_columns_goes_on(tmp_path):
    path = tmp_path / "metrics.csv"
    old = [name for name in COLUMNS if name not in ("mfu_documents", "peak_memory_gb")]
    path.write_text(f"{','.join(old)},added_later\r\n1,0.5,1.0,0.001,8,0,0,,,,,,abc\r\n")
    assert read_metrics(path)[0] | {"loss": 0.5, "mfu_documents": None} == read_metrics(path)[0]
    write_run(tmp_path, 2, 3)
    header, first, second, _ = path.read_text().splitlines()
    assert header.split(",") == [*old, "added_later", "mfu_documents", "peak_memory_gb"]
    assert first == "1,0.5,1.0,0.001,8,0,0,,,,,,abc,,"
    assert second.startswith("2,0.2,1.0,0.001,16,0,1,")
    assert steps(tmp_path) == [1, 2, 3]


def test_lost_lines_are_said(tmp_path, capsys):
    write_run(tmp_path, 1, 3)
    write_run(tmp_path, 6, 7)
    assert f"{tmp_path}/metrics.csv has lost the lines of steps 4 to 5" in capsys.readouterr().err
    assert steps(tmp_path) == [1, 2, 3, 6, 7]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:300] + b"\xff" + path.read_bytes()[301:]),
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:200] + bytes(100) + path.read_bytes()[300:]),
        lambda path: path.write_text(path.read_text().replace("0.1,", "zero,")),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["not UTF-8", "garbage", "empty", "zeroed page", "no number", "FIFO", "folder"],
)
def test_a_damaged_file_is_moved_aside_and_begun_anew(tmp_path, damage, capsys):
    for name in ("metrics.damaged.csv", "metrics.damaged.1.csv"):
        write_run(tmp_path, 1, 8)
        damage(tmp_path / "metrics.csv")
        assert write_run(tmp_path, 5, 7) == 1
        assert steps(tmp_path) == [5, 6, 7]
        assert (tmp_path / name).exists()
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert str(tmp_path / name) in said


def test_what_the_disk_refuses_is_written_later(tmp_path, capsys):
    writer = open_writer(tmp_path, policy="continue")
    writer.write([line(1)])
    writer.flush()
    with file_size_limit((tmp_path / "metrics.csv").stat().st_size + 20):  # so half a line is written
        for step in (2, 3):
            writer.write([line(step)])
            writer.flush()
    assert steps(tmp_path) == [1]
    assert (
        f"{tmp_path}/metrics.csv cannot be written: File too large; the run continues"
        in capsys.readouterr().err
    )
    writer.write([line(4)])
    writer.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert "metrics.csv is written again" in capsys.readouterr().err


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    errors = SaveErrors("stop", rank=0)
    (tmp_path / "run").mkdir()
    writer = MetricsWriter(tmp_path / "run", 1, None, errors)
    shutil.rmtree(tmp_path / "run")
    writer.write([line(1)])
    writer.flush()
    assert errors.stop
    writer.close()
    with pytest.raises(InputError, match=r"run/metrics\.csv cannot be written: No such file"):
        errors.close()
    assert not (tmp_path / "run").exists()


def test_a_disk_that_hangs_does_not_hold_training(tmp_path, monkeypatch):
    free = threading.Event()
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (free.wait(60), sync(descriptor)))
    free.set()
    writer = open_writer(tmp_path)
    free.clear()
    for step in range(1, 6):
        writer.write([line(step)])  # returns
    free.set()
    writer.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


# ---- validation.csv


def validate(writer, step, stage="", loss=0.5, bits=0.25):
    writer.write_validation([ValidationLine(step, stage, store, 8, loss, bits) for store in ("de", "en")])


def validations(out_dir):
    return [(line.step, line.stage) for line in read_validation(out_dir / "validation.csv")[::2]]


def test_validations_come_back_with_every_bit(tmp_path):
    writer = open_writer(tmp_path)
    assert not (tmp_path / "validation.csv").exists()  # a run without a validation store has none
    validate(writer, 0, "stage, first", 1 / 3, None)
    writer.close()
    line, _ = read_validation(tmp_path / "validation.csv")
    assert line == ValidationLine(0, "stage, first", "de", 8, 1 / 3, None)
    with pytest.raises(InputError, match="not a metrics file"):
        read_metrics((tmp_path / "validation.csv").rename(tmp_path / "metrics.csv"))


def test_a_continued_run_drops_the_validations_it_repeats(tmp_path):
    writer = open_writer(tmp_path)
    for step, stage in [(0, "a"), (5, "a"), (10, "a"), (10, "b"), (12, "b"), (20, "b"), (20, "c"), (25, "c")]:
        validate(writer, step, stage)
    writer.close()
    for step, begun, kept in [
        (24, "abc", [(0, "a"), (5, "a"), (10, "a"), (10, "b"), (12, "b"), (20, "b"), (20, "c")]),
        (20, "ab", [(0, "a"), (5, "a"), (10, "a"), (10, "b"), (12, "b"), (20, "b")]),  # c begins
        (12, "ab", [(0, "a"), (5, "a"), (10, "a"), (10, "b"), (12, "b")]),
        (10, "a", [(0, "a"), (5, "a"), (10, "a")]),
        (9, "a", [(0, "a"), (5, "a")]),
    ]:
        MetricsWriter(tmp_path, step + 1, None, SaveErrors("stop", rank=0), begun=begun).close()
        assert validations(tmp_path) == kept
    open_writer(tmp_path).close()
    assert validations(tmp_path) == []


def test_a_validation_that_the_disk_refuses_is_written_later(tmp_path, capsys):
    writer = open_writer(tmp_path, policy="continue")
    validate(writer, 0)
    writer.flush()
    with file_size_limit((tmp_path / "validation.csv").stat().st_size + 10):
        validate(writer, 5)
        writer.flush()
    writer.close()
    assert validations(tmp_path) == [(0, ""), (5, "")]
    assert "validation.csv is written again" in capsys.readouterr().err


# ---- TensorBoard


@pytest.mark.parametrize("continued", [False, True])
def test_boards_show_validations_by_store_and_both_of_a_border(tmp_path, continued):
    """Under two names: Weights & Biases keeps the last value of a name and a step."""
    writer = open_writer(tmp_path)
    validate(writer, 5, "first", bits=None)
    if continued:
        writer.close()
        writer.close_boards()
        writer = MetricsWriter(tmp_path, 6, None, SaveErrors("stop", 0), begun=("first",))
    validate(writer, 5, "next", 0.75, bits=None)
    validate(writer, 6, "next", 0.25, bits=None)
    writer.close()
    writer.close_boards()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        f"{name}/{store}" for name in ("val_loss", "val_loss_at_stage_start") for store in ("de", "en")
    }
    assert [(event.step, event.value) for event in events.Scalars("val_loss/de")] == [(5, 0.5), (6, 0.25)]
    assert [(n.step, n.value) for n in events.Scalars("val_loss_at_stage_start/de")] == [(5, 0.75)]


def test_tensorboard_reads_what_is_reported_and_hides_what_is_repeated(tmp_path):
    write_run(tmp_path, 1, 4)
    write_run(tmp_path, 3, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, pytest.approx(0.3))]


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_tensorboard_is_no_reason_to_stop(tmp_path, capsys, when):
    if when == "at the start":
        (tmp_path / "tensorboard").write_text("in the way")
    errors = SaveErrors("stop", rank=0)
    writer = MetricsWriter(tmp_path, 1, None, errors)
    if when == "later":
        written = max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir())
        with file_size_limit(written + 10):
            writer._boards[0].log({"loss": 1.0}, 1)
    for step in (1, 2):
        writer.write([line(step)])
    writer.close()
    assert writer.close_boards()
    errors.close()
    assert capsys.readouterr().err.count("TensorBoard shows nothing from here on") == 1
    assert steps(tmp_path) == [1, 2]


def test_an_upload_that_hangs_is_given_up_when_all_lines_are_on_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boards, "CLOSE_SECONDS", 0.1)
    free = threading.Event()
    writer = open_writer(tmp_path)
    monkeypatch.setattr(boards.EventFile, "finish", lambda self: free.wait(60))
    writer.write([line(1)])
    writer.close()
    assert steps(tmp_path) == [1]
    assert not writer.close_boards()
    assert "TensorBoard has not shown all figures after 0.1 s" in capsys.readouterr().err
    free.set()
