"""Curves of runs: what is drawn of them, and where."""

import json
import math
import shutil

import numpy as np
import pytest

from lit_gpt.errors import InputError
from pretrain.monitor.metrics import MetricsWriter, StepMetrics, ValidationLine
from pretrain.monitor.save_errors import SaveErrors
from scripts.explorer.callbacks import zoom
from scripts.explorer.figures import View, curves
from scripts.explorer.runs import Run, open_runs


def write_run(folder, steps, first=1, loss=lambda step: 5 / step, stores=()):
    folder.mkdir(exist_ok=True)
    writer = MetricsWriter(folder, first, None, SaveErrors("stop", 0), begun=("", "a"))
    lines = [
        StepMetrics(step, loss(step), 1.0, 1e-3, 10 * step, int(step == 7), writer.restart, step_seconds=3.6)
        for step in range(first, steps + 1)
    ]
    writer.write(lines)
    writer.write_validation([ValidationLine(steps, "a", store, 9, 2.0, 1.0) for store in stores])
    writer.close()
    return folder


@pytest.fixture
def run_dir(tmp_path):
    write_run(tmp_path / "run", 20, stores=["de", "<b>en</b>"])
    return write_run(tmp_path / "run", 40, first=11, stores=["de", "<b>en</b>"])


def traces(figure, mode="lines", axis="x"):
    return [trace for trace in figure["data"] if trace["mode"] == mode and trace["xaxis"] == axis]


def test_every_step_is_drawn_on_each_axis(run_dir):
    run = Run(run_dir, "a<b>")
    for axis, scale in (("step", 1), ("tokens", 10), ("hours", 0.001)):
        figure = curves([run], View(axis), 1)
        [loss] = traces(figure)
        assert loss["x"] == pytest.approx([scale * step for step in range(1, 41)])
        assert loss["y"] == [5 / step for step in range(1, 41)]
        assert [step for _, step in loss["customdata"]] == list(range(1, 41))
        assert loss["name"] == "a&lt;b&gt;"
        dotted = [shape["x0"] for shape in figure["layout"]["shapes"] if shape["line"]["dash"] == "dot"]
        assert dotted == pytest.approx([11 * scale] * 6)
        [skipped] = [trace for trace in figure["data"] if trace["name"] == "skipped steps"]
        assert skipped["x"] == pytest.approx([7 * scale])
        names = {trace["name"] for trace in traces(figure, "lines+markers")}
        assert names == {"a&lt;b&gt;: de", "a&lt;b&gt;: &lt;b&gt;en&lt;/b&gt;"}
    json.dumps(figure)


def test_a_zoom_shows_its_part_and_several_runs_are_told_apart(run_dir, tmp_path):
    other = shutil.copytree(run_dir, tmp_path / "other" / "run")
    runs = open_runs([run_dir, other])
    assert [run.name for run in runs] == [str(run_dir), str(other)]
    figure = curves(runs, View("step", 12.5, 15), 5)
    pale = [trace for trace in traces(figure) if "customdata" in trace]
    assert [trace["x"] for trace in pale] == [[12, 13, 14, 15, 16]] * 2
    assert len({trace["line"]["color"] for trace in pale}) == 2


def test_a_million_steps_with_a_spike_are_few_points(tmp_path):
    count = 1_000_000
    losses = np.random.default_rng(0).normal(3, 0.1, count)
    losses[654_321] = 77.0
    text = "".join(f"{step},{loss!r}\r\n" for step, loss in enumerate(losses.tolist(), start=1))
    (tmp_path / "metrics.csv").write_text("step,loss\r\n" + text)
    run = Run(tmp_path, "long")
    for view in (View(), View("step", 600_000, 700_000), View("step", 654_300, 654_350)):
        [pale] = [trace for trace in traces(curves([run], view, 20)) if "customdata" in trace]
        assert len(pale["x"]) < 1500
        assert [0, 654_322] in pale["customdata"]
    assert run.spike() == 654_322
    assert run.loss_at(654_322) == 77.0
    assert run.loss_at(count + 1) is None
    assert run.steps_between("step", 10.5, 12) == (11, 12)


def test_losses_that_are_not_finite_and_a_run_without_steps(tmp_path):
    run = Run(write_run(tmp_path / "nan", 9, loss=lambda step: math.nan if step > 4 else 1.0), "nan")
    [loss] = traces(curves([run], View(), 1))
    assert loss["x"] == [1, 2, 3, 4]
    empty = Run(write_run(tmp_path / "empty", 0), "empty")
    figure = curves([empty], View("hours"), 20)
    assert len(figure["layout"]["annotations"]) == 12
    assert empty.spike() == 0


def test_what_a_run_adds_is_seen(run_dir):
    run = Run(run_dir, "run")
    before = run.version
    run.refresh()
    assert run.version == before
    (run_dir / "iter-00000040-ckpt.pth").mkdir()
    write_run(run_dir, 50, first=41)
    run.refresh()
    assert run.version == before + 1
    assert run.last_step == 50
    assert list(run.marks.checkpoints) == [40]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.csv there"):
        open_runs([tmp_path])
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column named loss"):
        open_runs([tmp_path])


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({"xaxis.range[0]": 3, "xaxis.range[1]": 9.5}, (3, 9.5)),
        ({"xaxis4.range[0]": 3, "xaxis4.range[1]": 9, "xaxis.range[0]": 3, "xaxis.range[1]": 9}, (3, 9)),
        ({"xaxis2.autorange": True}, (None, None)),
        ({"autosize": True}, None),
        ({"dragmode": "pan"}, None),
    ],
)
def test_what_a_zoom_asks_for(moved, expected):
    assert zoom(moved) == expected
