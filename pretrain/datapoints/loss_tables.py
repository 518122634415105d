"""What `losses` and `document_losses` have found, as tables for people."""

import json
from collections.abc import Iterator

import numpy as np

from lit_gpt.errors import InputError
from pretrain.datapoints.document_losses import DocumentLoss, Ranking, rank_documents
from pretrain.datapoints.losses import Found, Steps, losses_by_group, losses_by_step
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.reports import aligned


def loss_table(replay: Replay, steps: Steps, by: str, top: int, lowest: bool) -> Iterator[str]:
    """What the losses of some steps say.

    Args:
        by: `store`, `source` or `length`: groups of segments; `step`; `document`, or `repeats` of documents.
        top: lines, at most.
        lowest: of steps and documents show those with the lowest loss, or fall, not the highest.

    Raises:
        InputError: no losses were logged, or the log or its stores cannot be read.
    """
    found: Found
    if by in ("document", "repeats"):
        found = ranking = rank_documents(replay, steps, top=top, repeats=by == "repeats", lowest=lowest)
        lines = [*(_repeats(ranking) if by == "repeats" else ()), *_documents(ranking)]
    elif by == "step":
        found = losses_by_step(replay, steps)
        lines = [*_steps(found, top, lowest)]
    else:
        found = losses_by_group(replay, steps, by)
        lines = [*_groups(found, by, top)]
    if not found.known:
        raise InputError(
            f"{replay.log.folder} has no losses of steps {steps.first}-{steps.last}: runs log them, but not "
            "with --log_losses false, nor did earlier revisions"
        )
    yield from lines
    if found.unknown:
        yield f"{found.unknown:,} segment(s) have no loss: not logged, not finite, or without a target"


def _groups(found: Found, by: str, top: int) -> Iterator[str]:
    """A line for each of the `top` groups with the most targets: its loss, and how that changed."""
    spans = [f"{part.first}-{part.last}" for part in found.steps.parts()]
    table = [("segments", "targets", "loss", *spans, by)]
    for name, sums in sorted(found.sums.items(), key=lambda item: -item[1][:, 1].sum())[:top]:
        segments, targets, _ = total = sums.sum(axis=0)
        losses = map(_mean, [total, *sums])
        table.append((f"{segments:,.0f}", f"{targets:,.0f}", *losses, name))
    yield from aligned(table)
    if len(found.sums) > top:
        yield f"and {len(found.sums) - top:,} with fewer targets"


def _steps(found: Found, top: int, lowest: bool) -> Iterator[str]:
    """A line for each of the `top` steps with the highest, or lowest, loss."""
    sums = found.sums.get("", np.zeros((0, 3)))
    [steps] = np.nonzero(sums[:, 1])
    losses = sums[steps, 2] / sums[steps, 1]
    order = np.argsort(losses if lowest else -losses, kind="stable")[:top]
    table = [("step", "segments", "targets", "loss")]
    for index in steps[order].tolist():
        segments, targets, _ = sums[index]
        row = (str(found.steps.first + index), f"{segments:,.0f}", f"{targets:,.0f}", _mean(sums[index]))
        table.append(row)
    yield from aligned(table)


def _documents(ranking: Ranking) -> Iterator[str]:
    """A line for each document."""
    header = (
        "loss",
        "targets",
        "seen",
        "first step",
        "its loss",
        "last step",
        "its loss",
        "fell by",
        "document",
    )
    yield from aligned([header, *map(_cells, ranking.top)])


def _repeats(ranking: Ranking) -> Iterator[str]:
    """How far the loss of documents fell that were seen again, by how often they were."""
    table: list[tuple[str, ...]] = [("seen", "documents", "loss at first", "at last", "fell by")]
    for times, (documents, first, last) in sorted(ranking.by_times.items()):
        if times == 1:
            continue
        means = first / documents, last / documents
        table.append((str(times), f"{documents:,.0f}", *(f"{n:.4f}" for n in (*means, means[0] - means[1]))))
    yield from [*aligned(table), ""]


def _cells(line: DocumentLoss) -> tuple[str, ...]:
    [info] = line.store.document_info(line.shard, np.array([line.document]))
    name = json.dumps(info.id, ensure_ascii=False)
    seen_again = line.times > 1
    return (
        f"{line.loss:.4f}",
        f"{line.targets:,}",
        str(line.times),
        str(line.first_step) if line.times else "-",
        f"{line.first_loss:.4f}" if line.times else "-",
        str(line.last_step) if seen_again else "-",
        f"{line.last_loss:.4f}" if seen_again else "-",
        f"{line.first_loss - line.last_loss:.4f}" if seen_again else "-",
        f"{name} from {info.source}:{info.source_line} in {line.store.path}",
    )


def _mean(sums: np.ndarray) -> str:
    _, targets, losses = sums
    return f"{losses / targets:.4f}" if targets else "-"
