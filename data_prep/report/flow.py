"""Show the flow of documents and bytes through the steps of prepare.py: `flow.md` and `flow.png`."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.text.changes import as_markdown
from lit_gpt.files import replacing, write_atomically

MARKUP = "markup and surroundings"
"""What the step `extract` cuts from pages that stay."""
_COLOURS = ("#4a7ba6", "#c77f3a", "#5b9a68", "#8a6aa8", "#b0565b")


class Loss(NamedTuple):
    """What one step drops for one reason."""

    part: str
    reason: str
    documents: int
    text_bytes: int


def show_flow(parts: dict[str, Path], output: Path) -> None:
    """Write `flow.md` and `flow.png` of finished steps into `output`.

    Args:
        parts: folder of each step by name, in order; each begins with what the one before has kept.
    """
    counts = {name: json.loads((folder / "stats.json").read_text("utf-8")) for name, folder in parts.items()}
    read, losses = next(iter(counts.values()))["read"], flow(counts)
    changed = [line for name, folder in parts.items() for line in as_markdown(folder, counts[name])]
    write_atomically(
        output / "flow.md", _table(read, losses) + "\n".join(["", *changed, ""] if changed else [])
    )
    with replacing(output / "flow.png") as file:
        _draw(read, losses, file)


def flow(counts: dict[str, dict[str, Any]]) -> list[Loss]:
    """The losses of all steps, the largest of each first. With what is kept they add up to what was read.

    Args:
        counts: the `stats.json` of each step.
    """
    losses: list[Loss] = []
    for name, stats in counts.items():
        of_part = [
            Loss(name, reason, count["documents"], count["text_bytes"])
            for reason, count in stats["excluded"].items()
        ]
        kept = stats["read"]["text_bytes"] - sum(loss.text_bytes for loss in of_part)
        if within := kept - stats["kept"]["text_bytes"]:
            reason = "changed text" if stats.get("changed") else "repeated paragraphs"
            of_part.append(Loss(name, MARKUP if name == "extract" else reason, 0, within))
        losses += sorted(of_part, key=lambda loss: -loss.text_bytes)
    return losses


def left_of(read: dict[str, int], losses: list[Loss]) -> tuple[int, int]:
    """Documents and bytes of text."""
    documents = read["documents"] - sum(loss.documents for loss in losses)
    return documents, read["text_bytes"] - sum(loss.text_bytes for loss in losses)


def _table(read: dict[str, int], losses: list[Loss]) -> str:
    lines = [
        "# From what was read to what is left\n",
        "![flow](flow.png)\n",
        "| step | dropped because of | documents | share | bytes | share |\n|---|---|---:|---:|---:|---:|",
    ]
    rows = [("", "**read**", read["documents"], read["text_bytes"]), *losses]
    for part, reason, documents, size in [*rows, ("", "**left**", *left_of(read, losses))]:
        shares = documents / max(read["documents"], 1), size / max(read["text_bytes"], 1)
        lines.append(f"| {part} | {reason} | {documents:,} | {shares[0]:.2%} | {size:,} | {shares[1]:.2%} |")
    return "\n".join(lines) + "\n"


def _draw(read: dict[str, int], losses: list[Loss], file: Any) -> None:
    """Bars from top to bottom: what was read, each loss beginning where the one before ends, what is left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.8 + 0.28 * len(losses)), layout="tight")
    parts = list(dict.fromkeys(loss.part for loss in losses))
    labels = ["read", *(f"{loss.part}: {loss.reason}" for loss in losses), "left"]
    totals = (read["documents"], read["text_bytes"] / 1e6)
    for panel, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        sizes = [(loss.documents, loss.text_bytes / 1e6)[panel] for loss in losses]
        ends = [totals[panel] - sum(sizes[:number]) for number in range(len(sizes) + 1)]
        colours = [_COLOURS[parts.index(loss.part) % len(_COLOURS)] for loss in losses]
        colours = ["#777777", *colours, "#777777"]
        bars = axes.barh(labels, [totals[panel], *sizes, ends[-1]], color=colours, edgecolor=colours)
        for bar, end in zip(list(bars)[1:-1], ends[1:], strict=True):
            bar.set_x(end)
            bar.set_linewidth(bool(bar.get_width()))  # the edge shows a bar that is thinner than a pixel
        unit = ("documents", "MB of text")[panel]
        axes.set(xlabel=unit, xlim=(0, totals[panel] * 1.02 or 1))
        axes.locator_params(axis="x", nbins=5)
        axes.invert_yaxis() if panel == 0 else None
    figure.savefig(file, dpi=100, format="png")
