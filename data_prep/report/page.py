"""Write `report.html`: what each rule dropped, with examples, for those who decide about its limit.

One file that loads nothing. Text of documents is escaped, so a browser shows what is there.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from data_prep.filters.language import LanguageIdentifier
from data_prep.filters.limits import Limits
from data_prep.reading.rejects import losses_in_short, reject_in_short
from data_prep.report import examples
from data_prep.report.examples import Sample, pieces, sample
from data_prep.report.flow import MARKUP, Loss, flow, left_of, show_flow
from data_prep.report.places import Marker
from data_prep.text.changes import NOT_REPAIRED, examples_of
from lit_gpt.files import write_atomically
from lit_gpt.option_parser import docstrings

_BINS = 30
_FEWEST_VALUES = 20  # for a picture of them
_TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "report.html"
_OTHER_RULES = {
    "empty": "Nothing but white space.",
    "source_duplicate": "The corpus came with a list of duplicates that names it.",
    "only_repeats": "Every paragraph occurs in an earlier document.",
    "no_main_text": "No main text was found in the page: menus, forms, pictures, or tags nested too deep.",
    "page_too_long": "More bytes of HTML than are looked at.",
    "page_too_slow": "The extraction of the main text took too long.",
    "page_crashes_extractor": "The extraction of the main text failed.",
    MARKUP: "HTML, and what surrounds the main text of pages that stay: menus, notices, lists of links.",
    "repeated paragraphs": "Paragraphs that occur in an earlier document, cut from documents that stay. "
    "They are not recorded one by one.",
    "changed text": "Bytes by which the repair of texts made documents shorter (negative: longer).",
}
_STEPS = {
    "extract": "the main text of web pages",
    "clean": "rules for language, characters and length, on documents as they come",
    "dedup": "repeated paragraphs",
    "lines": "rules for lines and repetition, on what is left without repeated paragraphs, and length again",
    "minhash": "near duplicates",
}


class Rule(NamedTuple):
    """A rule that dropped documents."""

    dropped: Loss
    meaning: str
    option: str
    """Its limit as a flag; "" if it has none."""
    legend: str
    """What is yellow in the examples; "" if nothing is."""
    sample: Sample


def write_report(
    parts: dict[str, Path],
    output: Path,
    language: list[str],
    language_model: Path | None,
    rank: int,
    world_size: int,
) -> None:
    """Write `report.html`, `flow.md` and `flow.png` of finished steps into `output`.

    Args:
        parts: folder of each step by name, in order; each begins with what the one before has kept.
        language, language_model: of the rules for languages.
    """
    show_flow(parts, output)
    counts = {name: json.loads((folder / "stats.json").read_text("utf-8")) for name, folder in parts.items()}
    read, losses = next(iter(counts.values()))["read"], flow(counts)
    speaks = any("language" in loss.reason for loss in losses)
    identifier = LanguageIdentifier(language, language_model) if speaks else None
    marker = _marker([stats["settings"] for stats in counts.values()], identifier)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        read=read,
        steps={name: _STEPS.get(name, "") for name in parts},
        rules=[_rule(loss, parts[loss.part], marker) for loss in losses],
        left=Loss("", "left", *left_of(read, losses)),
        kept=sample(list(parts.values())[-1], None, marker),
        lost=[line for stats in counts.values() for line in _unusable(stats)],
        changed=list(_changed(parts, counts)),
        not_repaired=[item for stats in counts.values() for item in stats.get(NOT_REPAIRED, {}).items()],
        picture=base64.b64encode((output / "flow.png").read_bytes()).decode(),
        nearness=nearness,
        number="{:,.10g}".format,
        bars=bars,
        most_read=examples.RECORDS,
        most_files=examples.FILES,
        most_shown=examples.CHARACTERS,
        fewest_values=_FEWEST_VALUES,
    )
    write_atomically(output / "report.html", page)


def _changed(
    parts: dict[str, Path], counts: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Each repair of texts: name, counts, and examples, whose `id`, `before` and `after` are pieces."""
    for part, stats in counts.items():
        for kind, count in stats.get("changed", {}).items():
            shown = examples_of(parts[part], kind)
            yield kind, count, [{name: pieces(text) for name, text in each.items()} for each in shown]


def _marker(settings: list[dict[str, Any]], identifier: LanguageIdentifier | None) -> Marker:
    """By the settings of the steps."""
    limits = [each["limits"] for each in settings if "limits" in each]
    stop_words = [each["stop_words"] for each in limits]
    refrains = any(each.get("refrains") for each in limits)  # earlier revisions had no such setting
    words = [each["words"] for each in settings if "words" in each]
    return Marker(next(filter(None, stop_words), ()), identifier, refrains, *words[:1])


def _rule(loss: Loss, step: Path, marker: Marker) -> Rule:
    what, option = meaning(loss.reason)
    return Rule(loss, what, option, marker.legend(loss.reason), sample(step, loss.reason, marker))


def _unusable(stats: dict[str, Any]) -> list[str]:
    settings = stats["settings"]
    lines = [f"{count:,} {reject_in_short(reason, settings)}" for reason, count in stats["set_aside"].items()]
    return lines + losses_in_short(stats.get("losses", []))  # earlier revisions wrote no losses


def meaning(reason: str) -> tuple[str, str]:
    """What a rule measures, and the option that sets its limit."""
    if reason in _OTHER_RULES:
        return _OTHER_RULES[reason], ""
    if reason == "near_duplicate":
        return "Jaccard similarity to an earlier document that stays.", "--min_similarity"
    texts = docstrings(Limits)
    numbered, _, n = reason.rpartition("_")
    if reason in texts:
        return texts[reason], f"--{reason}"
    if numbered in texts:
        return texts[numbered].replace("n: s", "S").replace(" n ", f" {n} "), f"--{numbered}, n = {n}"
    return texts["signals"], "--signals"


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
