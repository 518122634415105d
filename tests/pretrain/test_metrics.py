import pytest

from lit_gpt.cli import InputError
from pretrain.metrics import MetricsWriter, StepMetrics, read_metrics


def line(step, restart=0, loss=0.1):
    return StepMetrics(step, loss * step, 1.0, 1e-3, step * 8, 0, restart)


def test_lines_come_back_with_every_bit(tmp_path):
    writer = MetricsWriter(tmp_path, 1, None)
    writer.write([line(step, loss=1 / 3) for step in (1, 2)])
    writer.close()
    first, second = read_metrics(tmp_path / "metrics.csv")
    assert (first["loss"], second["loss"]) == (1 / 3, 2 / 3)
    assert first["val_loss"] is None


def test_a_continued_run_drops_the_steps_it_repeats(tmp_path):
    writer = MetricsWriter(tmp_path, 1, None)
    writer.write([line(step) for step in range(1, 8)])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,0.8,1")  # killed in the middle of a line
    again = MetricsWriter(tmp_path, 5, None)
    assert again.restart == 1
    again.write([line(step, restart=again.restart) for step in range(5, 10)])
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["restart"] for row in rows] == [0] * 4 + [1] * 5


def test_a_new_run_starts_a_new_file(tmp_path):
    MetricsWriter(tmp_path, 1, None).write([line(1)])
    assert MetricsWriter(tmp_path, 1, None).restart == 0
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_another_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a metrics file"):
        read_metrics(tmp_path / "metrics.csv")
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "other.csv")
