"""What the page says of the losses of segments in the part of a run that the curves show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dash import Dash, Input, Output
from dash.exceptions import PreventUpdate

from lit_gpt.errors import InputError
from scripts.explorer import tables
from scripts.explorer.figures import Figure
from scripts.explorer.loss_figures import histogram, over_time
from scripts.explorer.losses import Losses
from scripts.explorer.reading import Reading
from scripts.explorer.runs import Run

MOST = 10
_OF_SEGMENTS = "distribution, segments"
_OF_STEPS = "distribution, means of steps"


def connect_losses(app: Dash, runs: Sequence[Run], readings: Sequence[Reading]) -> None:
    """Distribution, stores and sources over time, and the extremes; read only while they are looked at."""

    @app.callback(
        Output("losses-summary", "children"),
        Output("histogram", "figure"),
        Output("by-store", "figure"),
        Output("by-source", "figure"),
        Output("extreme-segments", "children"),
        Input("tabs", "value"),
        Input("run", "value"),
        Input("view", "data"),
        Input("extremes", "value"),
        Input("drawn", "data"),
    )
    def show_losses(tab: str, number: str, view: dict[str, Any], which: str, *_: Any) -> Any:
        if tab != "losses":
            raise PreventUpdate
        run, reading = runs[int(number)], readings[int(number)]
        first, last = run.steps_between(view["axis"], view["low"], view["high"])
        try:
            losses = reading.losses(first, last)
        except InputError as error:
            return tables.error(str(error)), *_of_steps(run, first, last), None
        if not losses.values:
            told = (
                "The log has no losses of segments for these steps: not logged, or not yet (each save adds)."
            )
            return told, *_of_steps(run, first, last), None
        chosen = losses.highest if which == "highest" else losses.lowest
        return f"{run.name}: {_summary(losses)}", *_figures(losses), tables.extreme_table(chosen)


def _summary(losses: Losses) -> str:
    values = losses.all_values()
    n_steps = losses.last + 1 - losses.first
    sampled = "" if losses.steps_read >= n_steps else f", read of {losses.steps_read:,} of these steps"
    return (
        f"steps {losses.first:,} to {losses.last:,}: {values.size:,} segments{sampled}; "
        f"median loss {np.median(values):.3f}, 99% below {np.quantile(values, 0.99):.3f}"
    )


def _figures(losses: Losses) -> list[Figure]:
    return [
        histogram(losses.all_values(), _OF_SEGMENTS),
        over_time(losses.steps, losses.over_time("store", MOST), "by store"),
        over_time(losses.steps, losses.over_time("source", MOST), f"by source, the {MOST} with most targets"),
    ]


def _of_steps(run: Run, first: int, last: int) -> list[Figure]:
    """What metrics.csv alone can tell."""
    steps = run.column("step")
    values = run.column("loss")[(steps >= first) & (steps <= last)]
    return [
        histogram(values, _OF_STEPS),
        *(over_time(steps, {}, title) for title in ("by store", "by source")),
    ]
