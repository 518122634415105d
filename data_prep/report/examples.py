"""Choose examples of what a rule dropped, and show of each text the part that matters, with marks.

Characters that cannot be seen are named. Of the documents that a rule dropped, only RECORDS are read; for a
near duplicate that is shown, the document that stays is read too.
"""

import heapq
import io
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash
import zstandard

from data_prep.reading.documents import Document, read_documents
from data_prep.reading.rejects import Rejects
from data_prep.report.places import Marker, Span
from data_prep.stages.corpus import KEPT
from lit_gpt.hidden_characters import is_hidden

EXAMPLES = 10
RECORDS = 1000
"""Documents read for each rule."""
FILES = 20
"""From at most so many files."""
CHARACTERS = 700
"""Shown of a text."""
_BEFORE_THE_PLACE = 200
_HELD = 1_000_000  # characters of a text, in which the places are sought


class Piece(NamedTuple):
    """Text of a document, or the name of a character that has no shape."""

    text: str
    is_marked: bool
    is_name: bool


class Excerpt(NamedTuple):
    """A document as the page shows it."""

    id: list[Piece]
    where: str
    """`STEP/excluded/REASON/000003.jsonl.zst:line`"""
    text: list[Piece]
    first: int
    """The character that the text shown begins with."""
    n_characters: int


class Example(NamedTuple):
    """A document that was dropped, or kept."""

    shown: Excerpt
    url: list[Piece]
    found: dict[str, Any]
    """`value` and `limit` where the rule has them."""
    stays: Excerpt | None
    """The document that a near duplicate is like."""


class Sample(NamedTuple):
    """What was read of the documents dropped for one reason."""

    n_read: int
    examples: list[Example]
    values: np.ndarray
    """float64 (documents,): the rule's value, from the limit on. Empty for a rule without a limit."""
    limit: float | None


def sample(step: Path, reason: str | None, marker: Marker) -> Sample:
    """Read some of the documents of a step, and choose examples by a hash of the id.

    The files are one per input file, so the choice does not depend on the number of tasks.

    Args:
        step: its folder.
        reason: why they were dropped; None if they are kept.
    """
    found: list[dict[str, Any]] = []

    def keyed() -> Iterator[tuple[int, str, int, Document, int]]:
        for document in _some(step / "excluded" / reason if reason else step / KEPT):
            found.append(document.metadata["excluded"] if reason else {})
            key = xxhash.xxh3_64_intdigest(document.id.encode())
            held = document._replace(text=document.text[:_HELD])
            yield key, document.source, document.source_line, held, len(document.text)

    chosen = heapq.nsmallest(EXAMPLES, keyed(), key=lambda entry: entry[:3])
    numbers = (each.get("value") for each in found)  # JSON has null for an infinite one
    values = np.array([number for number in numbers if number is not None], np.float64)
    limit = next((each["limit"] for each in found if "limit" in each), None)
    if limit is not None:
        values = values[np.argsort(abs(values - limit))]
    examples = [_example(document, n, step, reason, marker) for *_, document, n in chosen]
    return Sample(len(found), examples, values, limit)


def _some(folder: Path) -> Iterator[Document]:
    """The first documents of files at equal distances."""
    files = sorted(folder.glob("*.jsonl.zst"))
    n_chosen = min(len(files), FILES)
    for number in range(n_chosen):
        documents = read_documents([files[number * len(files) // n_chosen]], Rejects())
        yield from islice(documents, RECORDS // n_chosen)


def _example(
    document: Document, n_characters: int, step: Path, reason: str | None, marker: Marker
) -> Example:
    found = document.metadata["excluded"] if reason else {}
    where = f"{Path(document.source).relative_to(step.parent)}:{document.source_line}"
    url = pieces(str(document.metadata.get("url") or "")[:CHARACTERS])
    if "like" in found:
        at = found.get("like_at", "")  # earlier revisions wrote only a number in the input
        n_kept, kept = _text(step / KEPT, at)
        ours, theirs = marker.alike(document.text, kept)
        differs = min(_until(ours), _until(theirs))  # both texts are equal before
        shown = _excerpt(document.id, where, document.text, n_characters, ours, differs)
        where = f"{step.name}/{KEPT}/{at}" if at else "as a number in the input"
        stays = _excerpt(str(found["like"]), where, kept, n_kept, theirs, differs)
        return Example(shown, url, found, stays)
    places = marker.places(reason, document) if reason else []
    first = places[0][0] if places else 0
    return Example(_excerpt(document.id, where, document.text, n_characters, places, first), url, found, None)


def _text(folder: Path, place: str) -> tuple[int, str]:
    """Characters of the document at a place `FILE:LINE`, and its text; "" if the file is not there."""
    name, _, line = place.partition(":")
    path = folder / Path(name).name
    if not path.is_file():
        return 0, ""
    with zstandard.open(path, "rb") as stream:
        text = orjson.loads(next(islice(io.BufferedReader(stream), int(line) - 1, None)))["text"]
    return len(text), text[:_HELD]


def _until(places: list[Span]) -> int:
    """The first character of a text that is not in the places."""
    return places[0][1] if places and places[0][0] == 0 else 0


def _excerpt(
    name: str, where: str, text: str, n_characters: int, places: Iterable[Span], place: int
) -> Excerpt:
    """The part of a text around the character `place`, with what the rule counts."""
    first = max(min(place - _BEFORE_THE_PLACE, len(text) - CHARACTERS), 0)
    shown = pieces(text[: first + CHARACTERS], first, places)
    return Excerpt(pieces(name[:CHARACTERS]), where, shown, first, n_characters)


def pieces(text: str, first: int = 0, places: Iterable[Span] = ()) -> list[Piece]:
    """The text from a character on, cut where places begin and end, and around characters to name."""
    found: list[Piece] = []
    for start, end in [*places, (len(text), len(text))]:
        start, end = max(start, first), min(end, len(text))
        if start <= end:
            found += [*_named(text[first:start], False), *_named(text[start:end], True)]
            first = end
    return found


def _named(text: str, is_marked: bool) -> Iterator[Piece]:
    for hidden, characters in groupby(text, is_hidden):
        if hidden:
            yield from (
                Piece(unicodedata.name(each, f"U+{ord(each):04X}"), is_marked, True) for each in characters
            )
        else:
            yield Piece("".join(characters), is_marked, False)
