"""A CSV file as it is followed, against the reader of complete files."""

import math

import numpy as np
import pytest

from lit_gpt.errors import InputError
from pretrain.monitor.csv_tail import CsvTail
from pretrain.monitor.metrics import MetricsWriter, StepMetrics, ValidationLine, read_metrics
from pretrain.monitor.save_errors import SaveErrors


def line(step, loss=1.5, **more):
    return StepMetrics(step, loss, 0.5, 1e-4, 10 * step, 0, more.pop("restart", 0), **more)


def as_read(path):
    rows = read_metrics(path)
    return {name: [math.nan if row[name] is None else row[name] for row in rows] for name in rows[0]}


def assert_same(tail):
    expected = as_read(tail.path)
    assert tail.columns.keys() == expected.keys()
    for name, column in tail.columns.items():
        np.testing.assert_array_equal(column, expected[name])


def test_a_growing_file_and_one_that_a_resumed_run_has_cut(tmp_path):
    tail = CsvTail(tmp_path / "metrics.csv")
    assert not tail.refresh()
    assert tail.columns == {}
    writer = MetricsWriter(tmp_path, 1, None, SaveErrors("stop", 0))
    assert tail.refresh()
    assert not tail.refresh()
    for step, loss in enumerate([2.0, math.nan, math.inf, -math.inf, 1e-300, 0.1 + 0.2], start=1):
        writer.write([line(step, loss, val_loss=3.25 if step == 3 else None)])
        writer.flush()
        assert tail.refresh()
        assert not tail.refresh()
        assert_same(tail)
    writer.close()
    with tail.path.open("ab") as file:
        file.write(b"7,1.0,0.")  # as a kill leaves it
    assert not tail.refresh()

    resumed = MetricsWriter(tmp_path, 4, None, SaveErrors("stop", 0))
    resumed.write([line(step, restart=1) for step in range(4, 40)])
    resumed.close()
    assert tail.refresh()
    assert_same(tail)
    assert tail.columns["step"].tolist() == list(range(1, 40))
    tail.path.unlink()
    assert tail.refresh()
    assert tail.columns == {}


def test_another_file_of_the_same_name_inode_and_size_is_noticed(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,2.5\r\n2,2.25\r\n")
    tail = CsvTail(path)
    tail.refresh()
    path.write_text("step,loss\r\n1,7.5\r\n2,7.25\r\n3,7.0\r\n")  # in place
    assert tail.refresh()
    assert tail.columns["loss"].tolist() == [7.5, 7.25, 7.0]


def test_names_with_commas_stay_text(tmp_path):
    writer = MetricsWriter(tmp_path, 1, None, SaveErrors("stop", 0))
    writer.write_validation([ValidationLine(5, "", 'de, "alt"', 7, 1.25, None)])
    writer.close()
    tail = CsvTail(tmp_path / "validation.csv", texts=("stage", "store"))
    tail.refresh()
    assert tail.columns["store"].tolist() == ['de, "alt"']
    assert tail.columns["stage"].tolist() == [""]
    assert np.isnan(tail.columns["bits_per_byte"]).all()


def test_damage_is_told(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,x\r\n")
    with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
        CsvTail(path).refresh()
