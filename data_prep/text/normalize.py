"""Mend what is wrong with a text's characters before anything measures it: the kinds, the step, the counts.

A text that needs nothing stays as it is, bit for bit, and costs a few searches for single characters.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.stages.corpus import CorpusDocument
from data_prep.text.changes import Changes
from data_prep.text.html_remains import remove_html_remains
from data_prep.text.mojibake import repair_mojibake

_MOST_ROUNDS = 8
_LINE_END = re.compile("\r\n?|[\x0b\x0c\u2028\u2029]")


@dataclass(kw_only=True)
class NormalizeOptions:
    """Repair of texts, before they are measured (whatever the preset; documents are changed, not dropped)."""

    mojibake: bool = True
    """Repair UTF-8 that was read as Windows-1252: `fÃ¼r` becomes `für`."""
    html_remains: bool = True
    """Remove tags and decode `&uuml;`, except in a text about HTML."""
    line_ends: bool = True
    """Make all line ends one line feed; paragraphs are compared byte for byte."""
    nfc: bool = True
    """Compose letters and marks (Unicode NFC), as in `ü` from `u` and a diaeresis."""

    def kinds(self) -> list[str]:
        """The kinds of repair that are on, in their order."""
        return [kind for kind in REPAIRS if getattr(self, kind)]


Leave = Callable[[str], object]
"""Is told why a text stays as it is that has something to repair."""


def _end_lines(text: str, leave: Leave) -> str:
    """LF for CRLF, CR, vertical tab, form feed, line and paragraph separator: Unicode's mandatory breaks.

    U+0085 is left to `repair_mojibake`: on the web it is the ellipsis of Windows-1252.
    """
    if any(map(text.__contains__, "\r\x0b\x0c\u2028\u2029")):
        return _LINE_END.sub("\n", text)
    return text


def _compose(text: str, leave: Leave) -> str:
    """NFC, but for a text with more marks on one letter than Unicode's stream-safe format allows (UAX #15).

    Python sorts the marks of a letter in a time that grows with the square of their number.
    """
    if unicodedata.is_normalized("NFC", text):
        return text
    if _too_many_marks().search(text):
        leave("has more than 30 marks on a letter")
        return text
    return unicodedata.normalize("NFC", text)


@cache
def _too_many_marks() -> re.Pattern[str]:
    marks = "".join(filter(unicodedata.combining, map(chr, range(sys.maxunicode + 1))))
    return re.compile(f"[{marks}]{{31}}")


REPAIRS: dict[str, Callable[[str, Leave], str]] = {
    "mojibake": repair_mojibake,
    "html_remains": remove_html_remains,
    "line_ends": _end_lines,
    "nfc": _compose,
}
"""Each returns the same object where it changes nothing. A later one may uncover work for an earlier one."""


def normalize(
    text: str, kinds: list[str], leave: Leave = lambda why: None
) -> tuple[str, list[tuple[str, str, str]]]:
    """The text after all repairs, and each that changed something: kind, text before and after.

    Nothing is left to do for a second call. A text that still changes after 8 rounds was made to: it stays as
    it is.
    """
    found = text
    changes: list[tuple[str, str, str]] = []
    for _ in range(_MOST_ROUNDS):
        n_changes = len(changes)
        for kind in kinds:
            repaired = REPAIRS[kind](found, leave)
            if repaired is not found and repaired != found:
                changes.append((kind, found, repaired))
                found = repaired
        if len(changes) == n_changes:
            return found, changes
    leave("changes without end")
    return text, []


class Normalize(PipelineStep):
    """Repairs the documents' texts; counts those changed and those left as they are, and notes examples."""

    type, name = "TEXT", "normalize"

    def __init__(self, kinds: list[str], folder: Path) -> None:
        super().__init__()
        self.kinds = kinds
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        found = Changes(self.folder)
        for file, documents in groupby(data, lambda document: document.file):
            for document in documents:
                left: set[str] = set()
                document.text, changes = normalize(document.text, self.kinds, left.add)
                if changes or left:
                    found.add(document.id, changes, left)
                yield document
            found.end_file(file)
        for name, count in found.counts.items():
            self.stat_update(name, value=count)
