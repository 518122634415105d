"""What the page does about steps, segments and documents."""

from collections.abc import Callable, Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate

from lit_gpt.errors import InputError
from scripts.explorer import tables
from scripts.explorer.reading import Reading, Segment, in_order, segments_of
from scripts.explorer.runs import Run
from scripts.explorer.tokens import part_of, pieces, token_losses


def connect_reading(app: Dash, runs: Sequence[Run], readings: Sequence[Reading]) -> None:
    """Steps that are clicked, segments of a step, texts and documents."""
    _connect_choice(app)
    _connect_step(app, runs, readings)
    _connect_segment(app, runs, readings)
    _connect_document(app, runs, readings)


def _connect_choice(app: Dash) -> None:
    """A click on the curves, or on a step of a document's list, chooses a run and a step."""

    @app.callback(
        Output("run", "value"),
        Output("step", "value"),
        Output("tabs", "value"),
        Input("curves", "clickData"),
        prevent_initial_call=True,
    )
    def choose(clicked: dict[str, Any] | None) -> Any:
        points = clicked["points"] if clicked else []
        places = [point["customdata"] for point in points if "customdata" in point]
        if not places:
            raise PreventUpdate
        return str(places[0][0]), places[0][1], "step"

    @app.callback(  # also asked when lines go, so it must not see `clickData`: it would repeat an old click
        Output("step", "value", allow_duplicate=True),
        Output("tabs", "value", allow_duplicate=True),
        Input({"type": "goto", "at": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def go_to(_: list[int]) -> Any:
        return int(chosen().split("/")[0]), "step"

    @app.callback(
        Output("document-id", "value"),
        Output("tabs", "value", allow_duplicate=True),
        Input({"type": "find", "at": ALL}, "n_clicks"),
        State({"type": "find", "at": ALL}, "value"),
        prevent_initial_call=True,
    )
    def find(_: list[int], ids: list[str]) -> Any:
        chosen()
        return ids[0], "document"


def _connect_step(app: Dash, runs: Sequence[Run], readings: Sequence[Reading]) -> None:
    @app.callback(
        Output("step-summary", "children"),
        Output("segments", "children"),
        Output("pages", "children"),
        Output("page", "value"),
        Output("segment", "data"),
        Output("checkpoint", "options"),
        Input("run", "value"),
        Input("step", "value"),
        Input("order", "value"),
        Input("page", "value"),
        Input("step", "n_submit_timestamp"),  # Enter asks again: a step may be in the log by now
    )
    def show_step(number: str, step: int | None, order: str, page: int | None, _: int | None) -> Any:
        run, reading = runs[int(number)], readings[int(number)]
        kept = {str(path): f"step {at:,}" for at, path in sorted(run.marks.checkpoints.items(), reverse=True)}
        try:
            fed, names = reading.step(step or 0), reading.store_names()
        except InputError as error:
            return tables.error(str(error)), None, "", no_update, None, kept
        segments = in_order(segments_of(fed), order)
        n_pages = -(-len(segments) // tables.PAGE)
        page = min(max(page or 1, 1), n_pages) if ctx.triggered_id == "page" else 1
        first = segments[(page - 1) * tables.PAGE]
        summary = tables.step_summary(run.name, step or 0, fed, segments, run.loss_at(step or 0))
        place = [number, step, first.row, first.segment]
        table = tables.segment_table(segments, page, names)
        return summary, table, f"of {n_pages}", page, place, kept

    @app.callback(
        Output("segment", "data", allow_duplicate=True),
        Input({"type": "segment", "at": ALL}, "n_clicks"),
        State("run", "value"),
        State("step", "value"),
        prevent_initial_call=True,
    )
    def choose_segment(_: list[int], number: str, step: int) -> Any:
        return [number, step, *map(int, chosen().split("/"))]


def _connect_segment(app: Dash, runs: Sequence[Run], readings: Sequence[Reading]) -> None:
    @app.callback(
        Output("segment-title", "children"),
        Output("segment-text", "children"),
        Input("segment", "data"),
        Input("checkpoint", "value"),
    )
    @told(2)
    def show_segment(place: list[Any] | None, checkpoint: str | None) -> Any:
        if place is None:
            return None, None
        number, step, row, at = int(place[0]), *place[1:]
        segments = segments_of(readings[number].step(step))
        segment = next((one for one in segments if (one.row, one.segment) == (row, at)), None)
        if segment is None:
            raise InputError(f"step {step:,} has no such segment (any more): choose one in the table")
        return tables.segment_title(runs[number].name, step, segment), tables.text(
            pieces(segment.store, segment.tokens, _losses(runs[number], checkpoint, segment))
        )


def _losses(run: Run, checkpoint: str | None, segment: Segment) -> Any:
    """With the weights of one of the run's checkpoints, which alone a browser can name."""
    paths = [path for path in run.marks.checkpoints.values() if str(path) == checkpoint]
    return token_losses(paths[0], segment.tokens) if paths else None


def _connect_document(app: Dash, runs: Sequence[Run], readings: Sequence[Reading]) -> None:
    @app.callback(
        Output("document", "children"),
        Output("document-text", "children"),
        Output("parts", "children"),
        Output("part", "value"),
        Input("run", "value"),
        Input("document-id", "value"),
        Input("part", "value"),
        Input("document-id", "n_submit"),  # Enter asks again
        prevent_initial_call=True,
    )
    @told(4)
    def show_document(number: str, name: str | None, part: int | None, _: int | None) -> Any:
        if not name:
            return "Give the id of a document, or find one in a step.", None, "", 1
        run, reading = runs[int(number)], readings[int(number)]
        documents = reading.documents(name)
        if not documents:
            raise InputError(f"no store of {run.name} has a document with this id")
        part = part or 1 if ctx.triggered_id == "part" else 1
        planned = reading.planned_step()
        found = [tables.document_summary(document, run.last_step, planned) for document in documents]
        first = documents[0]
        tokens, count = part_of(first.store.document_tokens(first.shard, first.number), part)
        shown = tables.text(pieces(first.store, tokens))
        return found, shown, f"of {count}", min(max(part, 1), count)


def chosen() -> str:
    """The `at` of the element that was clicked; raises PreventUpdate where elements only came or went."""
    clicked = [one["prop_id"] for one in ctx.triggered if one["value"]]
    if not clicked:
        raise PreventUpdate
    return str(ctx.triggered_prop_ids[clicked[0]]["at"])


def told(n_outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Show what is wrong with what was asked for in the first output, and nothing in the others."""

    def wrap(answer: Callable[..., Any]) -> Callable[..., Any]:
        def answered(*arguments: Any) -> Any:
            try:
                return answer(*arguments)
            except InputError as error:
                return tables.error(str(error)), *[None] * (n_outputs - 1)

        return answered

    return wrap
