"""Figures for Plotly, as plain dictionaries: the curves of runs, and what is drawn of losses."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from scripts.explorer.aggregate import extremes, in_view, one_per_bucket, smoothed
from scripts.explorer.runs import AXES, Run
from scripts.explorer.text import for_plot

Figure = dict[str, Any]
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#444444"]
"""Of runs and stores; told apart by the colour-blind, too (Okabe and Ito)."""
SYMBOLS = ["circle", "diamond", "square", "triangle-up", "star", "hexagon", "pentagon", "cross"]
MAX_BUCKETS = 700
MAX_MARKS = 200
AXIS = {"gridcolor": "white", "zeroline": False, "automargin": True}
FONT = {"family": "system-ui, sans-serif", "size": 12, "color": "#24292f"}


class Panel(NamedTuple):
    """One of the small pictures; `place` is its column and row."""

    column: str
    title: str
    place: tuple[int, int]
    log: bool = False


PANELS = [
    Panel("loss", "loss, nats per target · points: validation", (0, 0)),
    Panel("bits_per_byte", "validation, bits per byte of text", (1, 0)),
    Panel("grad_norm", "gradient norm before clipping", (0, 1), log=True),
    Panel("learning_rate", "learning rate", (1, 1)),
    Panel("tokens_per_second", "targets per second", (0, 2)),
    Panel("mfu", "MFU, share of the devices' peak", (1, 2)),
]
ROWS = [(0.0, 0.40), (0.49, 0.69), (0.78, 0.97)]
"""Of the height, from the top."""
COLUMNS = [(0.0, 0.475), (0.535, 1.0)]


class View(NamedTuple):
    """What part of which axis is seen; None: to the end."""

    axis: str = "step"
    low: float | None = None
    high: float | None = None


def curves(runs: Sequence[Run], view: View, smooth: int) -> Figure:
    """All panels. Points of training curves carry [run, step] as `customdata`.

    Args:
        smooth: steps over which the line of the loss is a mean; single steps stay as a pale line.
    """
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        for index, panel in enumerate(PANELS, start=1):
            drawn = [*_training(run, number, panel, view, smooth), *_validation(run, number, panel, view)]
            data += [trace | _axes(index) for trace in drawn]
        data += [_axes(1) | trace for trace in _marks(run, number, view)]
        lines, titles = _borders(run, number, view)
        shapes += lines
        names += titles
    used = {trace["xaxis"] for trace in data}
    layout = _layout(view, _span(runs, view))
    return {"data": data, "layout": layout | {"shapes": shapes, "annotations": [*_titles(used), *names]}}


def _axes(index: int) -> dict[str, str]:
    number = str(index) if index > 1 else ""
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def _training(run: Run, number: int, panel: Panel, view: View, smooth: int) -> Iterator[dict[str, Any]]:
    """The line of every step, thinned, and over it for the loss a moving average."""
    x, values = run.x[view.axis], run.column(panel.column)
    first, end = in_view(x, view.low, view.high)
    shown = extremes(values, first, end, MAX_BUCKETS)
    averaged = panel.column == "loss" and smooth > 1
    if not shown.size:
        return
    line = _line(run, number) | {"mode": "lines" if shown.size > 1 else "markers"}
    yield line | {
        "x": x[shown].tolist(),
        "y": values[shown].tolist(),
        "customdata": [[number, int(step)] for step in run.x["step"][shown]],
        "line": {"color": COLOURS[number % len(COLOURS)], "width": 1.2},
        "opacity": 0.35 if averaged else 1.0,
        "showlegend": panel.column == "loss" and not averaged,
        "hovertemplate": "step %{customdata[1]:,}: %{y:.5g}<extra></extra>",
    }
    if averaged:
        begin, stop = max(first - smooth, 0), min(end + smooth, values.size)
        mean = smoothed(values[begin:stop], smooth)
        shown = begin + extremes(mean, first - begin, end - begin, MAX_BUCKETS // 2)
        yield line | {"x": x[shown].tolist(), "y": mean[shown - begin].tolist(), "hoverinfo": "skip"}


def _line(run: Run, number: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": for_plot(run.name),
        "legendgroup": str(number),
        "line": {"color": COLOURS[number % len(COLOURS)], "width": 2},
    }


def _validation(run: Run, number: int, panel: Panel, view: View) -> Iterator[dict[str, Any]]:
    """Points of each validation store, in the panels of the loss and of bits per byte."""
    if panel.column not in ("loss", "bits_per_byte"):
        return
    for place, (store, lines) in enumerate(run.validations().items()):
        lines = {name: column[np.isfinite(lines[panel.column])] for name, column in lines.items()}
        x = run.at(lines["step"], view.axis)
        first, end = in_view(x, view.low, view.high)
        shown = extremes(lines[panel.column], first, end, MAX_BUCKETS)
        if shown.size:
            yield _line(run, number) | {
                "mode": "lines+markers",
                "x": x[shown].tolist(),
                "y": lines[panel.column][shown].tolist(),
                "name": for_plot(f"{run.name}: {store}"),
                "legendgroup": f"{number}/{store}",
                "showlegend": panel.column == "loss",
                "line": {"color": COLOURS[(number + place) % len(COLOURS)], "width": 1, "dash": "dot"},
                "marker": {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 7},
                "hovertemplate": f"{for_plot(store)}: %{{y:.5g}}<extra></extra>",
            }


def _marks(run: Run, number: int, view: View) -> Iterator[dict[str, Any]]:
    """Below the loss: skipped steps as crosses, saves as triangles, hollow where deleted since."""
    skipped = run.x["step"][run.column("skipped") > 0]
    saves = np.array(run.marks.saves, dtype=float)
    kinds = [("skipped steps", skipped, "x", "skipped"), ("saves", saves, "triangle-up", "saved")]
    for height, (name, steps, symbol, word) in enumerate(kinds):
        x = run.at(steps, view.axis)
        low, high = _ends(run, view)
        shown = one_per_bucket(x, low, high, MAX_MARKS)
        if shown.size:
            there = [int(step) in run.marks.checkpoints for step in steps[shown]]
            yield {
                "type": "scatter",
                "mode": "markers",
                "x": x[shown].tolist(),
                "y": [0.02 + 0.05 * (2 * number + height)] * shown.size,
                "yaxis": "y9",
                "customdata": [[number, int(step)] for step in steps[shown]],
                "name": for_plot(f"{run.name}: {name}" if word == "saved" else name),
                "showlegend": word == "skipped" and number == 0,
                "marker": {
                    "symbol": [symbol if kept or word == "skipped" else f"{symbol}-open" for kept in there],
                    "size": 8,
                    "color": "#cf222e" if word == "skipped" else COLOURS[number % len(COLOURS)],
                },
                "hovertemplate": f"step %{{customdata[1]:,}} {word}<extra></extra>",
            }


def _ends(run: Run, view: View) -> tuple[float, float]:
    x = run.x[view.axis]
    last = float(x[-1]) if x.size else 0.0
    return 0.0 if view.low is None else view.low, last if view.high is None else view.high


def _borders(run: Run, number: int, view: View) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Restarts as dotted lines through all panels, beginnings of stages as dashed ones with their names."""
    restart = run.column("restart")
    restarts = run.x["step"][np.flatnonzero(np.diff(restart, prepend=restart[:1]) > 0)]
    low, high = _ends(run, view)
    shapes, names = [], []
    for steps, dash in ((restarts, "dot"), (np.array(list(run.marks.stages), dtype=float), "dash")):
        x = run.at(steps, view.axis)
        shown = one_per_bucket(x, low, high, MAX_MARKS // 4)
        line = {"color": COLOURS[number % len(COLOURS)], "width": 1, "dash": dash}
        for index in range(1, len(PANELS) + 1):
            axes = _axes(index)
            place = {"xref": axes["xaxis"], "yref": f"{axes['yaxis']} domain", "y0": 0, "y1": 1}
            shapes += [place | {"type": "line", "x0": at, "x1": at, "line": line} for at in x[shown]]
        if dash == "dash":
            text = {
                "xref": "x",
                "yref": "y domain",
                "y": 1,
                "yanchor": "top",
                "xanchor": "left",
                "showarrow": False,
            }
            names += [text | {"x": x[at], "text": for_plot(run.marks.stages[int(steps[at])])} for at in shown]
    return shapes, names


def _titles(used: set[str]) -> list[dict[str, Any]]:
    """Of the panels, and in those without a line why."""
    titles: list[dict[str, Any]] = []
    for index, panel in enumerate(PANELS, start=1):
        axes = _axes(index)
        place = {"xref": f"{axes['xaxis']} domain", "yref": f"{axes['yaxis']} domain", "showarrow": False}
        above = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        titles.append(place | above | {"text": f"<b>{panel.title}</b>"})
        if axes["xaxis"] not in used:
            titles.append(
                place | {"x": 0.5, "y": 0.5, "text": "not measured in what is shown", "opacity": 0.6}
            )
    return titles


def _span(runs: Sequence[Run], view: View) -> list[float]:
    """What the horizontal axes show: the view, or all of the runs with a little room."""
    last = max([_ends(run, view)[1] for run in runs] or [0.0])
    first = -0.02 * last if view.low is None else view.low
    return [first, 1.02 * last if view.high is None else view.high]


def _layout(view: View, span: list[float]) -> dict[str, Any]:
    """Panels whose horizontal axes move together; vertical ones follow what is in view."""
    layout: dict[str, Any] = plain_layout() | {
        "uirevision": str(span),  # what was zoomed in the browser holds until it is answered
        "hovermode": "x",
        "dragmode": "zoom",
        "legend": {"uirevision": "chosen", "orientation": "h", "y": 1.05, "yanchor": "bottom", "x": 0},
        "margin": {"l": 50, "r": 15, "t": 50, "b": 40},
        "yaxis9": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    }
    for index, panel in enumerate(PANELS, start=1):
        axes, number = _axes(index), "" if index == 1 else str(index)
        column, row = panel.place
        layout[f"xaxis{number}"] = AXIS | {"domain": COLUMNS[column], "anchor": axes["yaxis"], "range": span}
        if index > 1:
            layout[f"xaxis{number}"]["matches"] = "x"
        if row == len(ROWS) - 1:
            layout[f"xaxis{number}"]["title"] = {"text": AXES[view.axis], "standoff": 4}
        bottom, top = ROWS[row]
        layout[f"yaxis{number}"] = AXIS | {
            "domain": (1 - top, 1 - bottom),
            "anchor": axes["xaxis"],
            "fixedrange": True,
            "type": "log" if panel.log else "linear",
        }
    return layout


def plain_layout() -> dict[str, Any]:
    """What all figures share."""
    return {
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "#f6f8fa",
        "colorway": COLOURS,
        "margin": {"l": 50, "r": 15, "t": 30, "b": 40},
    }
