"""Write `report.html`: what each rule dropped, with examples, for those who decide about its limit.

One file that loads nothing. Text of documents is escaped, and characters that cannot be seen are named, so a
browser shows what is there. Of the documents that a rule dropped, only RECORDS are read.
"""

import base64
import heapq
import json
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import xxhash

from data_prep.filters.limits import Limits
from data_prep.reading.documents import Document, Rejects, losses_in_short, read_documents
from data_prep.report.flow import Loss, flow, left_of, show_flow
from data_prep.report.places import Span, counted_places
from data_prep.stages.corpus import KEPT
from lit_gpt.files import write_atomically
from lit_gpt.hidden_characters import is_hidden
from lit_gpt.option_parser import docstrings

EXAMPLES = 10
RECORDS = 1000
"""Documents read for each rule."""
FILES = 20
"""From at most so many files."""
CHARACTERS = 700
"""Shown of a text."""
_BEFORE_THE_PLACE = 200
_HELD = 1_000_000  # characters of a text, in which the places are sought
_BINS = 30
_FEWEST_VALUES = 20  # for a picture of them
_TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "report.html"
_OTHER_RULES = {
    "empty": "Nothing but white space.",
    "source_duplicate": "The corpus came with a list of duplicates that names it.",
    "only_repeats": "Every paragraph occurs earlier in the input.",
    "near_duplicate": "Jaccard similarity to an earlier document that stays (--min_similarity).",
    "repeated paragraphs": "Paragraphs that occur earlier in the input, cut from documents that stay. "
    "They are not recorded one by one.",
}


class Piece(NamedTuple):
    """Text of a document, or the name of a character that has no shape."""

    text: str
    is_marked: bool
    is_name: bool


class Example(NamedTuple):
    """A document as the page shows it."""

    id: list[Piece]
    url: list[Piece]
    where: str
    """`STEP/excluded/REASON/000003.jsonl.zst:line`"""
    found: dict[str, Any]
    """`value` and `limit` where the rule has them."""
    like: list[Piece]
    """What the document is like, if the rule compares documents."""
    text: list[Piece]
    first: int
    """The character that the text shown begins with."""
    n_characters: int
    is_cut: bool


class Sample(NamedTuple):
    """What was read of the documents dropped for one reason."""

    n_read: int
    examples: list[Example]
    values: np.ndarray
    """float64 (documents,): the rule's value, from the limit on. Empty for a rule without a limit."""
    limit: float | None


def write_report(parts: dict[str, Path], output: Path, rank: int, world_size: int) -> None:
    """Write `report.html`, `flow.md` and `flow.png` of finished steps into `output`.

    Args:
        parts: folder of each step by name, in order; each begins with what the one before has kept.
    """
    show_flow(parts, output)
    counts = {name: json.loads((folder / "stats.json").read_text("utf-8")) for name, folder in parts.items()}
    read, losses = next(iter(counts.values()))["read"], flow(counts)
    rules = [
        (loss, meaning(loss.reason), sample(parts[loss.part] / "excluded" / loss.reason, output, loss.reason))
        for loss in losses
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        read=read,
        rules=rules,
        left=Loss("", "left", *left_of(read, losses)),
        kept=sample(list(parts.values())[-1] / KEPT, output, None),
        lost=[line for stats in counts.values() for line in _unusable(stats)],
        picture=base64.b64encode((output / "flow.png").read_bytes()).decode(),
        nearness=nearness,
        bars=bars,
        most_read=RECORDS,
        most_files=FILES,
        most_shown=CHARACTERS,
        fewest_values=_FEWEST_VALUES,
    )
    write_atomically(output / "report.html", page)


def _unusable(stats: dict[str, Any]) -> list[str]:
    lines = [f"{count:,} lines rejected: {reason}" for reason, count in stats["set_aside"].items()]
    return lines + losses_in_short(stats.get("losses", []))  # earlier revisions wrote no losses


def meaning(reason: str) -> str:
    """What a rule measures, and the option that sets its limit."""
    if reason in _OTHER_RULES:
        return _OTHER_RULES[reason]
    texts = docstrings(Limits)
    numbered, _, n = reason.rpartition("_")
    if reason in texts:
        return f"{texts[reason]} (--{reason})"
    if numbered in texts:
        return f"{texts[numbered]} (--{numbered}, n = {n})"
    return f"{texts['signals']} (--signals)"


def sample(folder: Path, output: Path, reason: str | None) -> Sample:
    """Read some of the documents of a folder, and choose examples by a hash of the id.

    The files are one per input file, so the choice does not depend on the number of tasks.

    Args:
        reason: why they were dropped; None if they are kept.
    """
    found: list[dict[str, Any]] = []

    def keyed() -> Iterator[tuple[int, str, int, Document, int]]:
        for document in _some(folder):
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
    return Sample(len(found), [_example(*entry[3:], output, reason) for entry in chosen], values, limit)


def _some(folder: Path) -> Iterator[Document]:
    """The first documents of files at equal distances."""
    files = sorted(folder.glob("*.jsonl.zst"))
    n_chosen = min(len(files), FILES)
    for number in range(n_chosen):
        documents = read_documents([files[number * len(files) // n_chosen]], Rejects())
        yield from islice(documents, RECORDS // n_chosen)


def _example(document: Document, n_characters: int, output: Path, reason: str | None) -> Example:
    places = counted_places(reason, document.text) if reason else []
    first = max(places[0][0] - _BEFORE_THE_PLACE, 0) if places else 0
    first = max(min(first, len(document.text) - CHARACTERS), 0)
    found = document.metadata["excluded"] if reason else {}
    return Example(
        id=pieces(document.id[:CHARACTERS]),
        url=pieces(str(document.metadata.get("url") or "")[:CHARACTERS]),
        where=f"{Path(document.source).relative_to(output)}:{document.source_line}",
        found=found,
        like=pieces(str(found.get("like", ""))[:CHARACTERS]),
        text=pieces(document.text[: first + CHARACTERS], first, places),
        first=first,
        n_characters=n_characters,
        is_cut=n_characters > CHARACTERS,
    )


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


def nearness(found: Sample) -> list[tuple[str, float]]:
    """The values within which a tenth, a quarter and half of the documents lie, counted from the limit."""
    shares = (("a tenth", 0.1), ("a quarter", 0.25), ("half", 0.5))
    last = len(found.values) - 1
    return [(name, float(found.values[int(share * last)])) for name, share in shares]


def bars(found: Sample) -> tuple[float, list[tuple[int, float]]]:
    """Documents by value, from the limit to beyond nine tenths of them: the last value, and for each bar its
    count and its height from 0 to 1."""
    limit, end = found.limit or 0.0, float(found.values[int(0.95 * (len(found.values) - 1))])
    distance = abs(end - limit)
    counts, _ = np.histogram(abs(found.values - limit), _BINS, (0, distance or 1.0))
    return end, [(int(count), float(count / max(counts.max(), 1))) for count in counts]
