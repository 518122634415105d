"""What is shown of steps and documents: tables and texts. Strings become text nodes, never markup."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dash import html

from pretrain.datapoints.steps import FedStep
from scripts.explorer.losses import Extreme
from scripts.explorer.reading import MAX_SEEN, Document, Segment, count_targets, infos_of
from scripts.explorer.text import title, visible
from scripts.explorer.tokens import Piece, mean_loss, text_of

PAGE = 25
OPENING_TOKENS = 40
NOT_LOGGED = "not logged"


def error(message: str) -> Any:
    """What went wrong, in place of what was asked for."""
    return html.Div(message, className="error")


def step_summary(name: str, step: int, fed: FedStep, segments: Sequence[Segment], loss: float | None) -> Any:
    """What a step was, in a line."""
    rows = fed.rows
    parts = [
        f"{len(rows)} rows, {len(segments)} segments, "
        f"{sum(map(count_targets, segments)):,} targets" + ("" if loss is None else f", loss {loss:.4f}")
    ]
    if fed.period.name:
        parts.append(f"stage {title(fed.period.name)}")
    if any(row.skipped for row in rows):
        parts.append("skipped: its gradient was not finite")
    if not fed.is_logged:
        parts.append("not in the log (yet): this is what the order of the data gives")
    proved = all(row.is_proved for row in rows)
    proof = "the checksum of every row agrees" if proved else "NOT what was fed: checksums differ"
    return html.Div(
        [
            html.B(f"{name}, step {step:,}: "),
            ". ".join(parts),
            ". ",
            html.Span(proof, className="proof" if proved else "error"),
        ]
    )


def segment_table(segments: Sequence[Segment], page: int, store_names: Mapping[Path, str]) -> Any:
    """A page of a step's segments, each of which can be clicked; with names of the stores by their paths."""
    shown = segments[(page - 1) * PAGE : page * PAGE]
    head = ["loss", "document", "store", "source", "targets", "text as fed"]
    lines = []
    for segment, info in zip(shown, infos_of(shown), strict=True):
        last = segment.start + segment.length - 1
        opening = text_of(segment.store, segment.tokens[:OPENING_TOKENS])
        cells = [
            _loss(segment.loss),
            title(info.id, 60),
            _end(store_names[segment.store.path]),
            f"{source(info.source)}:{info.source_line}",
            f"{segment.start}-{last} of {info.n_tokens - 1}",
            title(opening, 90),
        ]
        where = {"type": "segment", "at": f"{segment.row}/{segment.segment}"}
        lines.append(html.Tr([html.Td(cell) for cell in cells], id=where, n_clicks=0, className="choice"))
    return _table(head, lines)


def _loss(loss: float | None) -> str:
    """Of a segment: not a number where no label counts, or in a step that was skipped."""
    return NOT_LOGGED if loss is None else "none" if math.isnan(loss) else f"{loss:.3f}"


def segment_title(name: str, step: int, segment: Segment) -> list[Any]:
    """Of the text beside the table: what it is, and a way to all that saw the document."""
    [info] = infos_of([segment])
    last = segment.start + segment.length - 1
    loss = "" if segment.loss is None else f", loss {_loss(segment.loss)} when it was fed"
    return [
        html.B(visible(info.id[:500])),
        html.Div(
            f"targets {segment.start} to {last} of {info.n_tokens - 1}, as fed in step {step:,} of {name}, "
            f"row sample {segment.sample}{loss}"
        ),
        html.Div(
            f"from {source(info.source)}:{info.source_line}, in {title(segment.store.name)}",
            title=f"{visible(info.source)}, {segment.store.path}",
            className="hint",
        ),
        html.Button(
            "Which steps saw this document?", id={"type": "find", "at": "0"}, n_clicks=0, value=info.id
        ),
    ]


def text(parts: Sequence[Piece]) -> Any:
    """Pieces one after the other: losses as colours, what is no target in grey."""
    if len(parts) == 1 and parts[0].is_target and parts[0].loss is None:
        return html.Pre(visible(parts[0].text), dir="auto", className="text")
    spans = [
        html.Span(
            visible(piece.text),
            className=None if piece.is_target else "unmasked",
            style=None if piece.loss is None else {"background": heat(piece.loss)},
            title=None if piece.loss is None else f"{piece.loss:.2f} nats",
        )
        for piece in parts
    ]
    notes = []
    if (mean := mean_loss(parts)) is not None:
        notes.append(f"mean {mean:.3f} nats with these weights; point at a token for its loss. ")
    if not all(piece.is_target for piece in parts):
        notes.append("What is grey is read, but no target.")
    return [html.Div(notes, className="hint"), html.Pre(spans, dir="auto", className="text")]


def heat(loss: float) -> str:
    """A colour: none for a loss of 0, full from 10 nats on."""
    return f"rgba(213, 94, 0, {min(max(loss, 0.0) / 10, 1.0):.2f})"


def document_summary(document: Document, last_step: int, planned: int) -> Any:
    """Where a document is, and the steps that saw it or will see it."""
    info = document.info
    past = sum(seen.step <= last_step for seen in document.seen)
    ahead = len(document.seen) - past
    head = ["step", "sample", "targets", "loss then", ""]
    lines = []
    shown = document.seen[max(past - MAX_SEEN, 0) : past + MAX_SEEN]
    more = (
        f" Shown are the last {MAX_SEEN} and the next {MAX_SEEN}." if len(shown) < len(document.seen) else ""
    )
    for number, seen in enumerate(shown):
        loss = "" if seen.step > last_step else _loss(seen.loss)
        if document.last_logged < seen.step <= last_step:
            loss = "not yet logged"
        cells = [
            f"{seen.step:,}",
            str(seen.sample),
            f"{seen.start}-{seen.start + seen.length - 1}",
            loss,
            "to come" if seen.step > last_step else "seen",
        ]
        where = {"type": "goto", "at": f"{seen.step}/{document.shard}/{document.number}/{number}"}
        lines.append(html.Tr([html.Td(cell) for cell in cells], id=where, n_clicks=0, className="choice"))
    return html.Div(
        [
            html.B(visible(info.id[:500])),
            html.Div(
                f"{info.n_tokens:,} tokens, document {document.number} of shard {document.shard} in "
                f"{document.store.path}, from {visible(info.source)}:{info.source_line}"
            ),
            html.Div(
                f"Seen {past} times until step {last_step:,}; {ahead} times to come until step {planned:,}."
                f"{more}"
            ),
            _table(head, lines) if lines else None,
        ]
    )


def extreme_table(extremes: Sequence[Extreme]) -> Any:
    """Segments with the highest or lowest losses, each of which can be clicked."""
    lines = []
    for number, one in enumerate(extremes):
        cells = [f"{one.loss:.3f}", f"{one.step:,}", title(one.document_id, 80), _end(one.store)]
        cells.append(f"{one.start}-{one.start + one.length - 1}")
        where = {"type": "goto", "at": f"{one.step}/{number}"}
        lines.append(html.Tr([html.Td(cell) for cell in cells], id=where, n_clicks=0, className="choice"))
    return _table(["loss", "step", "document", "store", "targets"], lines)


def source(path: str) -> str:
    """The name of a source without its folders, which are beside the text."""
    return _end(path.rstrip("/").rpartition("/")[2] or path)


def _end(text: str) -> str:
    """Of a path what tells it from others."""
    line = title(text, 1000)
    return line if len(line) <= 30 else f"…{line[-29:]}"


def _table(head: Sequence[str], lines: Sequence[Any]) -> Any:
    return html.Table([html.Thead(html.Tr([html.Th(name) for name in head])), html.Tbody(lines)])
