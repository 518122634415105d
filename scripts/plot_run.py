"""Plot the metrics.csv of one run or of several, overlaid.

python scripts/plot_run.py --run runs/a runs/b --output runs.png
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import rename
from lit_gpt.option_types import PositiveInt

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

Metrics = list[dict[str, float | None]]


@dataclass
class Options:
    """Plot runs: loss, validation, learning rate, gradient norm, speed, MFU, skipped steps and restarts."""

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
    from pretrain.monitor.metrics import read_metrics

    runs = {}
    for folder in options.run:
        metrics = read_metrics(folder / "metrics.csv")
        if not metrics:
            raise InputError(f"{folder / 'metrics.csv'} has no step yet; plot it when the run has logged one")
        runs[str(folder) if folder.name in {f.name for f in options.run if f != folder} else folder.name] = (
            metrics
        )
    draw(runs, options.output, options.x, options.smooth)
    print(f"{options.output}: {', '.join(runs)}")


def draw(runs: dict[str, Metrics], output: Path, x: str = "step", smooth: int = 20) -> None:
    """Plot runs by name into one image file, which is replaced atomically.

    Raises:
        InputError: the file cannot be written, or its suffix names no known format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplot_mosaic(LAYOUT, figsize=(15, 9), layout="constrained")
    for number, (name, metrics) in enumerate(runs.items()):
        _draw_run(panels, metrics, x, smooth, name, f"C{number}")
    for name, title in TITLES.items():
        panels[name].set_title(title, fontsize=10)
        panels[name].grid(alpha=0.3)
        panels[name].set_xlabel(x, fontsize=8)
    panels["grad_norm"].set_yscale("log")
    panels["loss"].legend()
    if not any(_column(metrics, x, "mfu")[0] for metrics in runs.values()):
        panels["mfu"].text(
            0.5, 0.5, "the device's peak is not known", ha="center", transform=panels["mfu"].transAxes
        )
    panels["text"].axis("off")
    panels["text"].text(0, 1, "\n".join(describe(*run) for run in runs.items()), va="top", fontsize=9)
    part = output.with_name(f".{output.name}.part{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"--output {output}: {error}") from error
    finally:
        plt.close(figure)
    rename(part, output)


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


def smoothed(values: list[float], steps: int) -> np.ndarray:
    """Centered moving average over `steps` values, fewer at the ends, ignoring non-finite ones. (n,)"""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(len(values)) - (steps - 1) // 2, 0)
    end = np.minimum(np.arange(len(values)) + steps // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[end] - sums[first]) / (counts[end] - counts[first])


def _column(metrics: Metrics, x: str, name: str) -> tuple[list[float], list[float]]:
    """The positions and values of the lines that have a value."""
    pairs = [(line[x] or 0.0, value) for line in metrics if (value := line[name]) is not None]
    return [at for at, _ in pairs], [value for _, value in pairs]


if __name__ == "__main__":
    run_command(Options, main)
