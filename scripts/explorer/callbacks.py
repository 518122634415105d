"""What the page does: from the state of a browser to what it shows. The server keeps no state of browsers.

Dash drops an answer if it asks again before it has come. So what the page shows tells what has changed
since, and not what asks.
"""

import re
from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, ctx, no_update

from scripts.explorer.figures import View, curves
from scripts.explorer.page import NUMBERS, states
from scripts.explorer.runs import Run

_RANGE = re.compile(r"xaxis\d*\.range\[([01])\]")
_ALL = re.compile(r"xaxis\d*\.autorange")


def connect_curves(app: Dash, runs: Sequence[Run]) -> None:
    """The curves follow the choice of axis, the zoom and the runs."""

    @app.callback(
        Output("view", "data"),
        Input("axis", "value"),
        Input("curves", "relayoutData"),
        State("view", "data"),
        prevent_initial_call=True,
    )
    def look(axis: str, moved: dict[str, Any] | None, view: dict[str, Any]) -> Any:
        zoomed = zoom(moved or {})
        if axis != view["axis"] or "axis" in ctx.triggered_prop_ids.values():
            return {"axis": axis, "low": None, "high": None}
        return no_update if zoomed is None else {"axis": axis, "low": zoomed[0], "high": zoomed[1]}

    @app.callback(
        Output("curves", "figure"),
        Output("runs", "children"),
        Output("drawn", "data"),
        Input("view", "data"),
        Input("smooth", "value"),
        Input("tick", "n_intervals"),
        State("drawn", "data"),
        running=[(Output("tick", "disabled"), True, False)],  # which would ask again before a slow answer
    )
    def draw(view: dict[str, Any], smooth: int | None, _: int | None, drawn: list[Any] | None) -> Any:
        for run in runs:
            run.refresh()
        asked = [view, smooth, [run.version for run in runs]]
        if asked == drawn:
            return no_update, states(runs), no_update
        return curves(runs, View(**view), smooth or 1), states(runs), asked

    app.clientside_callback(  # Dash (4.4) leaves a tick disabled where the server did not respond
        "() => false",
        Output("tick", "disabled"),
        Input("recovery", "n_intervals"),
        prevent_initial_call=True,
    )


def connect_numbers(app: Dash) -> None:
    """Take each number that is typed.

    A dcc.Input (Dash 4.4) ignores one that equals its value at the last Enter or blur, also where an answer
    has changed the value since. When these change with each value, it compares with what it shows.
    """
    for name in NUMBERS:
        app.clientside_callback(
            "value => [Date.now(), Date.now()]",
            Output(name, "n_submit"),
            Output(name, "n_blur"),
            Input(name, "value"),
        )


def zoom(moved: dict[str, Any]) -> tuple[float | None, float | None] | None:
    """The part of the axis that a `relayoutData` of Plotly asks for; None: it is about something else."""
    ends = {match[1]: float(value) for name, value in moved.items() if (match := _RANGE.fullmatch(name))}
    if len(ends) == 2:
        return ends["0"], ends["1"]
    return (None, None) if any(map(_ALL.fullmatch, moved)) else None
