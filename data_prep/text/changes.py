"""What the repair of texts changed: counts in stats.json, and examples for those who decide about it.

FOLDER/changed/000003.json    of the fourth input file, the first examples of each kind
"""

import json
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.filters.units import code_points
from data_prep.stages.pipeline import write_json

EXAMPLES = 3
_FILES = 20  # at equal distances, of which examples are read
_SHOWN = 160
_BEFORE = 40
_FOLDER = "changed"
NOT_REPAIRED = "not_repaired"
"""In stats.json: documents with something to repair that stay as they are, by reason."""


class Changes:
    """Collects the changes of one task, kind by kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _FOLDER
        self.counts: Counter[str] = Counter()
        """`changed/KIND/documents`, `changed/KIND/characters`, `not_repaired/REASON`."""
        self._examples: dict[str, list[dict[str, str]]] = defaultdict(list)

    def add(self, id: str, changes: list[tuple[str, str, str]], left: Iterable[str] = ()) -> None:
        """Note the changes of a document, kind, text before and after, and why something was left."""
        self.counts.update(f"{NOT_REPAIRED}/{reason}" for reason in left)
        for kind in {kind for kind, _, _ in changes}:
            self.counts[f"{_FOLDER}/{kind}/documents"] += 1
        for kind, before, after in changes:
            self.counts[f"{_FOLDER}/{kind}/characters"] += _lost(before, after)
            if len(self._examples[kind]) < EXAMPLES:
                pairs = enumerate(zip(before, after, strict=False))
                first = next((place for place, (old, new) in pairs if old != new), len(after))
                shown = slice(max(first - _BEFORE, 0), max(first - _BEFORE, 0) + _SHOWN)
                self._examples[kind].append({"id": id, "before": before[shown], "after": after[shown]})

    def end_file(self, file: int) -> None:
        """Write the examples of an input file."""
        if self._examples:
            write_json(self._folder / f"{file:06d}.json", self._examples)
        self._examples.clear()


def _lost(before: str, after: str) -> int:
    """How many of a text's characters the other one lacks."""
    points = code_points(before), code_points(after)
    size = int(max(each.max(initial=0) for each in points)) + 1
    old, new = (np.bincount(each, minlength=size) for each in points)
    return int(np.maximum(old - new, 0).sum())


def counts_of(sums: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """`documents` and `characters` by kind, of the counts of a stage; most documents first."""
    kinds = [name.split("/")[1] for name in sums if name.startswith(f"{_FOLDER}/") and "/documents" in name]
    found = {
        kind: {unit: sums[f"{_FOLDER}/{kind}/{unit}"] for unit in ("documents", "characters")}
        for kind in kinds
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1]["documents"], item[0])))


def examples_of(folder: Path, kind: str) -> list[dict[str, str]]:
    """`id`, `before` and `after` of a few changes of a kind, of different input files if there are.

    What NFC replaces is spelled out, for what replaces it looks the same.
    """
    files = sorted((folder / _FOLDER).glob("*.json"))
    n_chosen = min(len(files), _FILES)
    chosen = [files[number * len(files) // n_chosen] for number in range(n_chosen)]
    of_files = [json.loads(file.read_text(encoding="utf-8")).get(kind, []) for file in chosen]
    in_turns = [found[number] for number in range(EXAMPLES) for found in of_files if number < len(found)]
    return [
        {name: "".join(map(_spelled, text)) for name, text in each.items()} for each in in_turns[:EXAMPLES]
    ]


def _spelled(character: str) -> str:
    """Marks that combine with a letter, and characters that are another one composed, as escapes."""
    if unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
        return f"\\u{ord(character):04x}" if character <= "\uffff" else f"\\U{ord(character):08x}"
    return character


def in_short(stats: dict[str, Any]) -> list[str]:
    """A line for the terminal for each kind and reason; earlier revisions changed nothing."""
    return [
        f"  {count['documents']:>12,}  changed, not dropped: {kind} ({count['characters']:,} characters)"
        for kind, count in stats.get("changed", {}).items()
    ] + [f"  {count:>12,}  not repaired: {reason}" for reason, count in stats.get(NOT_REPAIRED, {}).items()]


def as_markdown(folder: Path, stats: dict[str, Any]) -> list[str]:
    """A table of the kinds and reasons, with examples, whose text is indented."""
    changed, left = stats.get("changed", {}), stats.get(NOT_REPAIRED, {})
    if not (changed or left):
        return []
    n_read = max(stats["read"]["documents"], 1)
    lines = ["\n## Changed, not dropped\n", "| | documents | share | characters |\n|---|---:|---:|---:|"]
    for kind, count in changed.items():
        share = count["documents"] / n_read
        lines.append(f"| {kind} | {count['documents']:,} | {share:.2%} | {count['characters']:,} |")
    lines += [f"| not repaired: {why} | {n:,} | {n / n_read:.2%} | |" for why, n in left.items()]
    for kind in changed:
        for example in examples_of(folder, kind):
            shown = "\n".join(f"{when}: {example[when]!r}" for when in ("before", "after"))
            shown = textwrap.indent(f"{kind}, {example['id']!r}\n{shown}", "    ")
            lines.append(f"\n{shown}")
    return lines
