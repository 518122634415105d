"""What stands on the page, before anything is asked of it."""

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from scripts.explorer.figures import COLOURS
from scripts.explorer.reading import ORDERS
from scripts.explorer.runs import Run

REFRESH_SECONDS = 3
RECOVERY_SECONDS = 30
AXIS_CHOICES = {"step": "steps", "tokens": "tokens", "hours": "hours"}
NUMBERS = ("smooth", "step", "page", "part")
"""Fields for numbers."""
WAITING = {"visibility": "visible", "opacity": 0.5}
"""Of what is there while the next is computed."""
GRAPH = {
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "autoScale2d"]],  # by default one sends data to a cloud
    "doubleClick": "autosize",
    "showSendToCloud": False,
    "plotlyServerURL": "",
}


def layout(runs: Sequence[Run]) -> Any:
    """The page, in the state in which a browser meets it."""
    return html.Main(
        [
            dcc.Interval(id="tick", interval=1000 * REFRESH_SECONDS),
            dcc.Interval(id="recovery", interval=1000 * RECOVERY_SECONDS),
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
                            _number("smooth", 20),
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
            html.Div(
                [
                    html.Label(
                        ["of ", dcc.Dropdown(_names(runs), "0", id="run", clearable=False)],
                        className="of-run" if len(runs) > 1 else "hidden",
                    ),
                    dcc.Tabs(
                        [
                            dcc.Tab(_step(runs[0].spike()), label="A step", value="step"),
                            dcc.Tab(_document(), label="A document", value="document"),
                            dcc.Tab(_losses(), label="Losses in view", value="losses"),
                        ],
                        id="tabs",
                        value="step",
                    ),
                ],
            ),
        ]
    )


def _step(step: int) -> Any:
    """What a step was fed; at first the one whose loss stands out most."""
    return [
        html.Div(
            [
                html.Label(["step ", _number("step", step)]),
                dcc.Dropdown(ORDERS, "high", id="order", clearable=False),
                html.Label(["page ", _number("page", 1)]),
                html.Span(id="pages"),
                html.Span("Click a point of the curves for its step, a line for its text.", className="hint"),
            ],
            className="controls",
        ),
        html.Div(id="step-summary"),
        html.Div(
            [
                html.Div(id="segments", className="table"),
                html.Div(
                    [
                        html.Div(id="segment-title"),
                        html.Label(
                            [
                                "loss of each token with the weights of ",
                                dcc.Dropdown({}, None, id="checkpoint", placeholder="a checkpoint"),
                            ],
                            className="weights",
                        ),
                        dcc.Loading(html.Div(id="segment-text"), overlay_style=WAITING),
                    ],
                    className="reading",
                ),
            ],
            className="two",
        ),
        dcc.Store(id="segment"),
    ]


def _document() -> Any:
    """A document's text, and when it was seen."""
    return [
        html.Div(
            [
                html.Label(["id ", dcc.Input("", id="document-id", type="text", debounce=True)]),
                html.Label(["part ", _number("part", 1)]),
                html.Span(id="parts"),
            ],
            className="controls",
        ),
        html.Div(
            [html.Div(id="document", className="table"), html.Div(id="document-text", className="reading")],
            className="two",
        ),
    ]


def _losses() -> Any:
    """Losses in the part of the run that the curves show."""
    graphs = [
        dcc.Graph(id=name, config=GRAPH, className="small") for name in ("histogram", "by-store", "by-source")
    ]
    choice = dcc.RadioItems(
        {"highest": "highest losses", "lowest": "lowest losses"}, "highest", id="extremes", inline=True
    )
    return dcc.Loading(
        [
            html.Div(id="losses-summary"),
            html.Div(graphs, className="three"),
            html.Div(choice, className="controls"),
            html.Div(id="extreme-segments", className="table"),
        ],
        overlay_style=WAITING,
    )


def _number(name: str, value: int) -> Any:
    return dcc.Input(value, id=name, type="number", min=1, step=1, debounce=True)


def _names(runs: Sequence[Run]) -> dict[str, str]:
    return {str(number): run.name for number, run in enumerate(runs)}


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
