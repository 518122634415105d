"""The picture of a run."""

import math

import numpy as np
import pytest

from lit_gpt.cli import InputError
from pretrain.monitor.metrics import MetricsWriter, StepMetrics, ValidationLine
from pretrain.monitor.save_errors import SaveErrors
from scripts.plot_run import Options, describe, draw, main, smoothed


def line(step: int, restart: int = 0) -> StepMetrics:
    skipped = int(step == 7)
    return StepMetrics(
        step=step,
        loss=math.nan if skipped else 5 / step,
        grad_norm=math.inf if skipped else 1.0,
        learning_rate=1e-3,
        tokens=100 * step,
        skipped=skipped,
        restart=restart,
        val_loss=2.0 if step == 10 else None,
        tokens_per_second=1e4 if step % 5 == 0 else None,
    )


def write_run(folder, restarted_at: int | None = None) -> None:
    folder.mkdir()
    for first, last in [(1, 20)] if restarted_at is None else [(1, 20), (restarted_at, 30)]:
        writer = MetricsWriter(folder, first, None, SaveErrors("stop", rank=0))
        writer.write([line(step, writer.restart) for step in range(first, last + 1)])
        writer.close()


def test_runs_are_drawn_over_one_another(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", restarted_at=16)
    picture = tmp_path / "pictures" / "runs.png"
    main(Options(run=[tmp_path / "a", tmp_path / "b"], output=picture, x="tokens"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(picture.parent.iterdir()) == [picture]


def write_validations(folder) -> None:
    """English is forgotten in the second stage; code has no bits."""
    writer = MetricsWriter(folder, 21, None, SaveErrors("stop", rank=0))
    for step, stage, en in [(0, "a", 1.5), (10, "a", 1.5), (10, "b", 1.4), (20, "b", 1.9)]:
        stores = {"de": 2 - step / 20, "en": en, "code": None}
        writer.write_validation([ValidationLine(step, stage, name, 8, 3.0, n) for name, n in stores.items()])
    writer.close()


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_forgetting_is_drawn_by_store_and_stages_begin_at_lines(tmp_path, monkeypatch, x):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    write_run(tmp_path / "a")
    write_validations(tmp_path / "a")
    main(Options(run=[tmp_path / "a"], output=tmp_path / "a.png", x=x))
    (panel,) = (axes for axes in figures[0].axes if axes.get_ylabel() == "learned  < 0 <  forgotten")
    scale = 100 if x == "tokens" else 1
    drawn = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    at = [0, 10 * scale, 10 * scale, 20 * scale]
    assert drawn["de (first: 2.000)"] == [list(p) for p in zip(at, [0, -0.5, -0.5, -1], strict=True)]
    assert np.allclose(drawn["en (first: 1.500)"], list(zip(at, [0, 0, -0.1, 0.4], strict=True)))
    assert not any(name.startswith("code") for name in drawn)
    assert {text.get_text().strip(): text.get_position()[0] for text in panel.texts} == {
        "a": 0,
        "b": 10 * scale,
    }


def test_runs_of_one_name_keep_apart(tmp_path, capsys):
    for parent in (tmp_path / "x", tmp_path / "y"):
        parent.mkdir()
        write_run(parent / "run")
    main(Options(run=[tmp_path / "x/run", tmp_path / "y/run"], output=tmp_path / "runs.svg"))
    assert f"{tmp_path}/x/run, {tmp_path}/y/run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "no such file"), ("empty", "no step yet")],
)
def test_a_folder_without_steps_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    MetricsWriter(tmp_path / "empty", 1, None, SaveErrors("stop", rank=0)).close()
    with pytest.raises(InputError, match=message):
        main(Options(run=[tmp_path / name], output=tmp_path / "x.png"))


def test_an_unknown_format_leaves_nothing_behind(tmp_path):
    metrics = [vars(line(step)) for step in (1, 2)]
    with pytest.raises(InputError, match="foo"):
        draw({"a": metrics}, tmp_path / "x.foo")
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_run():
    metrics = [vars(line(step, restart=step // 15)) for step in range(1, 21)]
    text = describe("a", metrics)
    assert "20 steps, 2,000 targets" in text
    assert "loss 5.000 to 0.250, validation 2.000" in text
    assert "skipped steps (x): 1, restarts (dotted): 1" in text


def test_the_average_is_that_of_the_values_around():
    values = [3.0, 1.0, math.nan, 4.0, 8.0]
    assert smoothed(values, 3).tolist() == [2.0, 2.0, 2.5, 6.0, 6.0]
    assert smoothed(values, 4).tolist() == [2.0, 8 / 3, 13 / 3, 6.0, 6.0]
    assert smoothed(values[:2], 1).tolist() == values[:2]
    assert np.isnan(smoothed(values, 1)[2])
