"""Figures of the losses of segments."""

from typing import Any

import numpy as np

from scripts.explorer.figures import AXIS, COLOURS, Figure, plain_layout
from scripts.explorer.text import for_plot

LEGEND = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}


def histogram(values: np.ndarray, title: str) -> Figure:
    """How often losses occur."""
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=60)
    bars = {
        "type": "bar",
        "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]),
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y:,} at %{x:.3f}<extra></extra>",
    }
    layout = {"title": _title(title), "xaxis": AXIS | {"title": {"text": "nats per target"}}, "yaxis": AXIS}
    return {"data": [bars], "layout": plain_layout() | layout}


def over_time(steps: np.ndarray, means: dict[str, np.ndarray], title: str) -> Figure:
    """A line for each store or source."""
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers" if np.isfinite(values).sum() < 20 else "lines",
            "x": steps[np.isfinite(values)].tolist(),
            "y": values[np.isfinite(values)].tolist(),
            "name": for_plot(f"…{name[-39:]}" if len(name) > 40 else name),
            "line": {"width": 1.6, "dash": "solid" if number < len(COLOURS) else "dot"},
        }
        for number, (name, values) in enumerate(means.items())
    ]
    layout = {"title": _title(title), "xaxis": AXIS | {"title": {"text": "steps"}}, "yaxis": AXIS}
    return {"data": lines, "layout": plain_layout() | layout | {"showlegend": True, "legend": LEGEND}}


def _title(text: str) -> dict[str, Any]:
    return {"text": f"<b>{text}</b>", "font": {"size": 12}, "x": 0, "xref": "paper", "xanchor": "left"}
