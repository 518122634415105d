"""Plot the metrics.csv of one run or of several, overlaid, and below what validation.csv says of each store.

python scripts/plot_run.py --run runs/a runs/b --output runs.png
"""

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import rename
from lit_gpt.option_types import PositiveInt
from scripts.explorer.aggregate import smoothed

if TYPE_CHECKING:
    from pretrain.monitor.metrics import ValidationLine

LAYOUT = [
    ["loss", "loss", "grad_norm"],
    ["loss", "loss", "learning_rate"],
    ["tokens_per_second", "mfu", "text"],
]
TITLES = {
    "loss": "loss, nats per target (points: validation)",
    "grad_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
    "tokens_per_second": "targets per second",
    "mfu": "MFU",
}

VALIDATION = "bits per byte on each validation store, change since the first validation"
STYLES = ["-", "--", "-.", ":"]

Metrics = list[dict[str, float | None]]


@dataclass
class Options:
    """Plot runs: loss, validation (by store too), learning rate, gradient norm, speed, MFU, restarts."""

    run: list[Path]
    """Folders of runs (the --out_dir of their training); several are overlaid."""
    output: Path
    """Image file to write; its suffix names the format: .png, .pdf, .svg."""
    x: Literal["step", "tokens"] = "step"
    """Quantity on the horizontal axis; use tokens to compare runs with different batch sizes."""
    smooth: PositiveInt = 20
    """Window of the loss's moving average in steps; 1 disables it. Single steps stay as a pale line."""


def main(options: Options) -> None:
    """Read all runs, then plot them."""
    # Imports torch for TensorBoard, which takes seconds: bad options are refused before.
    from pretrain.monitor.metrics import read_metrics, read_validation

    runs, validations = {}, {}
    for folder in options.run:
        metrics = read_metrics(folder / "metrics.csv")
        if not metrics:
            raise InputError(f"{folder / 'metrics.csv'} has no step yet; plot it when the run has logged one")
        name = str(folder) if folder.name in {f.name for f in options.run if f != folder} else folder.name
        runs[name] = metrics
        if (folder / "validation.csv").exists():
            lines = read_validation(folder / "validation.csv")
            validations[name] = [line for line in lines if line.bits_per_byte is not None]
    draw(runs, options.output, options.x, options.smooth, validations)
    print(f"{options.output}: {', '.join(runs)}")


def draw(
    runs: dict[str, Metrics],
    output: Path,
    x: str = "step",
    smooth: int = 20,
    validations: "Mapping[str, list[ValidationLine]]" = MappingProxyType({}),
) -> None:
    """Plot runs by name into one image file, which is replaced atomically.

    Args:
        validations: of the runs that have some, with bits per byte.

    Raises:
        InputError: the file cannot be written, or its suffix names no known format.
    """
    from matplotlib.figure import Figure

    rows = [["validation"] * 3] if any(validations.values()) else []
    figure = Figure(figsize=(15, 9 + 4 * len(rows)), layout="constrained")
    panels: dict[str, Any] = figure.subplot_mosaic(LAYOUT + rows)
    for number, (name, metrics) in enumerate(runs.items()):
        _draw_run(panels, metrics, x, smooth, name, f"C{number}")
        if lines := validations.get(name):
            before = f"{name}: " if len(runs) > 1 else ""
            colours = [f"C{number}"] if len(runs) > 1 else [f"C{store}" for store in range(10)]
            _draw_validation(panels["validation"], lines, _positions(metrics, x), before, colours)
    _label(panels, TITLES | ({"validation": VALIDATION} if rows else {}), x)
    if not any(_column(metrics, x, "mfu")[0] for metrics in runs.values()):
        panels["mfu"].text(
            0.5, 0.5, "the device's peak is not known", ha="center", transform=panels["mfu"].transAxes
        )
    panels["text"].text(0, 1, "\n".join(describe(*run) for run in runs.items()), va="top", fontsize=9)
    part = output.with_name(f".{output.name}.part{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"--output {output}: {error}") from error
    rename(part, output)


def _label(panels: dict[str, Any], titles: Mapping[str, str], x: str) -> None:
    """Titles, axes and legends, once all lines are drawn."""
    for name, title in titles.items():
        panels[name].set_title(title, fontsize=10)
        panels[name].grid(alpha=0.3)
        panels[name].set_xlabel(x, fontsize=8)
    panels["grad_norm"].set_yscale("log")
    panels["loss"].legend()
    panels["text"].axis("off")
    if "validation" in titles:
        panels["validation"].axhline(0, color="black", linewidth=1)
        panels["validation"].legend(bbox_to_anchor=(1, 1), loc="upper left")
        panels["validation"].margins(y=0.15)  # room for the names of stages
        panels["validation"].set_ylabel("learned  < 0 <  forgotten")


def _draw_run(panels: dict[str, Any], metrics: Metrics, x: str, smooth: int, name: str, colour: str) -> None:
    at, losses = _column(metrics, x, "loss")
    if smooth > 1:
        panels["loss"].plot(at, losses, color=colour, alpha=0.25, linewidth=0.8)
    panels["loss"].plot(at, smoothed(losses, smooth), color=colour, label=name)
    panels["loss"].plot(*_column(metrics, x, "val_loss"), "o", color=colour, markeredgecolor="black")
    for column in set(TITLES) - {"loss"}:
        values = _column(metrics, x, column)
        if values[0]:
            panels[column].plot(*values, color=colour, linewidth=1)
    for line in (line for line in metrics if line["skipped"]):
        panels["loss"].plot(line[x], 0.02, "x", color=colour, transform=panels["loss"].get_xaxis_transform())
    for before, after in itertools.pairwise(metrics):
        if before["restart"] != after["restart"]:
            for column in TITLES:
                panels[column].axvline(after[x], color=colour, linestyle=":", linewidth=1)


def _draw_validation(
    panel: Any, lines: "list[ValidationLine]", positions: dict[int, float], before: str, colours: list[str]
) -> None:
    """Change of each store since its first line, and where stages begin."""
    for number, store in enumerate(dict.fromkeys(line.store for line in lines)):
        own = [line for line in lines if line.store == store]
        first = own[0].bits_per_byte or 0.0
        panel.plot(
            [positions.get(line.step, math.nan) for line in own],
            [(line.bits_per_byte or 0.0) - first for line in own],
            "o",
            linestyle=STYLES[number % len(STYLES)],
            color=colours[number % len(colours)],
            markersize=4,
            label=f"{before}{store} (first: {first:.3f})",
        )
    for stage in dict.fromkeys(line.stage for line in lines if line.stage):
        begin = positions.get(next(line.step for line in lines if line.stage == stage), math.nan)
        panel.axvline(begin, color="grey", linewidth=1)
        place = panel.get_xaxis_transform()
        panel.text(begin, 0.97, f" {stage}", va="top", fontsize=9, transform=place)


def _positions(metrics: Metrics, x: str) -> dict[int, float]:
    """Steps on the horizontal axis."""
    return {0: 0.0} | {int(line["step"] or 0): line[x] or 0.0 for line in metrics}


def describe(name: str, metrics: Metrics) -> str:
    """Summarize a run in three lines."""
    first, last = metrics[0], metrics[-1]
    validations = _column(metrics, "step", "val_loss")[1]
    skipped = sum(int(line["skipped"] or 0) for line in metrics)
    return (
        f"{name}: {int(last['step'] or 0):,} steps, {int(last['tokens'] or 0):,} targets\n"
        f"   loss {first['loss']:.3f} to {last['loss']:.3f}"
        + (f", validation {validations[-1]:.3f}" if validations else "")
        + f"\n   skipped steps (x): {skipped}, restarts (dotted): {int(last['restart'] or 0)}"
    )


def _column(metrics: Metrics, x: str, name: str) -> tuple[list[float], list[float]]:
    """The positions and values of the lines that have a value."""
    pairs = [(line[x] or 0.0, value) for line in metrics if (value := line[name]) is not None]
    return [at for at, _ in pairs], [value for _, value in pairs]


if __name__ == "__main__":
    run_command(Options, main)
