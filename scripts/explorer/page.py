"""What stands on the page, before anything is asked of it."""

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from scripts.explorer.figures import COLOURS
from scripts.explorer.runs import Run

REFRESH_SECONDS = 3
AXIS_CHOICES = {"step": "steps", "tokens": "tokens", "hours": "hours"}
GRAPH = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


def layout(runs: Sequence[Run]) -> Any:
    """The page, in the state in which a browser meets it."""
    return html.Main(
        [
            dcc.Interval(id="tick", interval=1000 * REFRESH_SECONDS),
            dcc.Store(id="drawn"),
            dcc.Store(id="view", data={"axis": "step", "low": None, "high": None}),
            html.Header(
                [html.H1("llammlein: what the model read"), html.Div(id="runs", children=states(runs))]
            ),
            html.Div(
                [
                    dcc.RadioItems(AXIS_CHOICES, "step", id="axis", inline=True),
                    html.Label(
                        [
                            "loss as mean over ",
                            dcc.Input(20, id="smooth", type="number", min=1, step=1, debounce=True),
                            " steps",
                        ]
                    ),
                    html.Span(
                        "Drag to zoom, double-click to see all. ▲ save (△ deleted since), ✕ skipped step, "
                        "dotted line: restart, dashed: stage.",
                        className="hint",
                    ),
                ],
                className="controls",
            ),
            dcc.Graph(id="curves", config=GRAPH, className="curves", clear_on_unhover=True),
        ]
    )


def states(runs: Sequence[Run]) -> list[Any]:
    """A line a run: its colour, name and state."""
    return [
        html.Div(
            [
                html.Span("■ ", style={"color": COLOURS[number % len(COLOURS)]}),
                html.B(run.name),
                f" step {run.last_step:,}: {run.state()}",
            ],
            className="run",
        )
        for number, run in enumerate(runs)
    ]
