"""Find the places of a text that a rule counts, so that a reader sees why the text was dropped."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from data_prep.duplicates.shingles import shared_words
from data_prep.filters.language import LanguageIdentifier, beginning
from data_prep.filters.measures import Texts
from data_prep.filters.units import BAD, LETTER, SPACE, Units, hashes_of
from data_prep.reading.documents import Document

Span = tuple[int, int]
"""First character and the one after the last."""


class Marker:
    """Finds what a rule counts in a text, so far as it counts places.

    Args:
        stop_words: of the rules for stop words.
        identifier: of the rules for languages; None if none of them dropped a document.
        refrains: whether the rules for sequences leave out repeated lines.
        words: of the sequences by which near duplicates are compared.
    """

    def __init__(
        self,
        stop_words: Sequence[str] = (),
        identifier: LanguageIdentifier | None = None,
        refrains: bool = False,
        words: int = 5,
    ) -> None:
        self._words = words
        self._refrains = refrains
        self._places = dict(_PLACES)
        stop_hashes = hashes_of(stop_words)
        for name, any_case in (("stop_words", False), ("stop_words_frac", True)):
            are_stop_words = partial(_in, stop_hashes, any_case)
            self._places[name] = f"the stop words ({' '.join(stop_words)})", _units(are_stop_words)
        if identifier is not None:
            foreign = "paragraphs that the model takes for another language, of those it looks at"
            self._places["language_frac"] = foreign, identifier.foreign
            self._places["language_score"] = foreign, lambda text: identifier.foreign(beginning(text))

    def legend(self, reason: str) -> str:
        """What `places` finds, in words; "" if the rule counts no places."""
        name, n = _named(reason)
        if reason == "near_duplicate":
            return f"sequences of {self._words} words that both texts have"
        return (_OF_SEQUENCES[name] if n else self._places.get(name, ("",)))[0].format(n=n)

    def places(self, reason: str, document: Document) -> list[Span]:
        """What the rule that dropped a document counts in it: ascending, apart.

        Args:
            reason: as recorded, such as `max_dup_ngram_frac_5`.
        """
        name, n = _named(reason)
        text = document.text
        is_given = name == "language_score" and document.metadata.get(name) is not None
        if not text or text.isspace() or is_given:
            return []
        if n:
            return _joined(_of_sequences(text, n, _OF_SEQUENCES[name][1], self._refrains))
        return _joined(self._places[name][1](text)) if name in self._places else []

    def alike(self, one: str, other: str) -> tuple[list[Span], list[Span]]:
        """In each of two near duplicates the sequences of words that both have."""
        ours, theirs = (list(re.finditer(r"\S{1,1000}", text)) for text in (one, other))
        shared = shared_words([each[0] for each in ours], [each[0] for each in theirs], self._words)
        return _runs(ours, shared[0]), _runs(theirs, shared[1])


def _named(reason: str) -> tuple[str, int]:
    """The measure of a rule, and n of its sequences of n words, or 0."""
    name = reason.partition("_")[2]
    measure, _, n = name.rpartition("_")
    return (measure, int(n)) if measure in _OF_SEQUENCES and n.isdigit() else (name, 0)


def _in(hashes: np.ndarray, any_case: bool, units: Units) -> np.ndarray:
    found = units.lower_hashes(np.arange(len(units.starts))) if any_case else units.hashes
    return units.is_word & np.isin(found, hashes)


def _runs(found: list[re.Match[str]], which: np.ndarray) -> list[Span]:
    """Neighbours that are marked, with what lies between them, as one."""
    edges = np.flatnonzero(np.diff(which, prepend=False, append=False)).reshape(-1, 2)
    return [(found[first].start(), found[last - 1].end()) for first, last in edges.tolist()]


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Overlapping and adjacent spans as one."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _lines(holds: Callable[[str], bool]) -> Callable[[str], Iterator[Span]]:
    """Finds the lines for which `holds` of the line without white space around it."""

    def find(text: str) -> Iterator[Span]:
        start = 0
        for line in text.splitlines(keepends=True):
            if holds(line.strip()):
                yield start, start + len(line.rstrip())
            start += len(line)

    return find


def _repeated_lines(text: str) -> Iterator[Span]:
    start, seen = 0, set()
    for line in text.split("\n"):
        if line and not line.isspace():
            if line in seen:
                yield start, start + len(line)
            seen.add(line)
        start += len(line) + 1


def _symbols(text: str) -> Iterator[Span]:
    """The kind of which there are more, as the measure has it."""
    signs, ellipses = (list(re.finditer(kind, text)) for kind in ("#", r"\.\.\.|…"))
    return (found.span() for found in max(signs, ellipses, key=len))


def _units(choose: Callable[[Units], np.ndarray]) -> Callable[[str], Iterator[Span]]:
    """Finds the words and punctuation marks that `choose` marks."""

    def find(text: str) -> Iterator[Span]:
        units = Units([text])
        which = np.flatnonzero(choose(units))
        return _spans(units.starts[which], units.ends[which])

    return find


def _characters(choose: Callable[[Units], np.ndarray]) -> Callable[[str], Iterator[Span]]:
    def find(text: str) -> Iterator[Span]:
        places = np.flatnonzero(choose(Units([text])))
        return _spans(places, places + 1)

    return find


def _spans(starts: np.ndarray, ends: np.ndarray) -> Iterator[Span]:
    """Of the text: `Units` puts a space before it."""
    return zip((starts - 1).tolist(), (ends - 1).tolist(), strict=True)


def _of_sequences(
    text: str, n: int, choose: Callable[[np.ndarray, np.ndarray], np.ndarray], refrains: bool
) -> Iterator[Span]:
    texts = Texts([text], [{}], [0], refrains=refrains)
    places, numbers = texts.sequences.repeated(n)
    places = choose(places, numbers) if len(places) else places
    firsts, lasts = texts.in_sequences[places], texts.in_sequences[places + n - 1]
    return _spans(texts.units.starts[firsts], texts.units.ends[lasts])


def _most_frequent(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return places[numbers == numbers[np.argmax(np.bincount(numbers)[numbers])]]


def _all_but_the_first(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.delete(places, np.unique(numbers, return_index=True)[1])


_Finder = Callable[[str], Iterable[Span]]
_OF_SEQUENCES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "top_ngram_frac": ("the most frequent sequence of {n} words and punctuation marks", _most_frequent),
    "dup_ngram_frac": ("sequences of {n} words and punctuation marks that occur before", _all_but_the_first),
}
_LINES = "lines that repeat an earlier one"
_PLACES: dict[str, tuple[str, _Finder]] = {
    "bad_chars_frac": ("these characters", _characters(lambda units: units.has(BAD))),
    "letters_frac": (
        "characters that are no letters",
        _characters(lambda units: ~units.has(LETTER | SPACE)),
    ),
    "alpha_words_frac": (
        "words and punctuation marks without a letter",
        _units(lambda units: ~units.has_letter),
    ),
    "avg_word_length": (
        "the longest words",
        _units(lambda units: units.is_word & (units.lengths == units.lengths.max())),
    ),
    "lower_case_words_frac": (
        "words that begin with a small letter",
        _units(lambda units: units.begins_small),
    ),
    "symbols_frac": ("number signs, or ellipses if there are more", _symbols),
    "bullet_lines_frac": (
        "lines that begin with a bullet or a dash",
        _lines(lambda line: line.startswith(("•", "-"))),
    ),
    "ellipsis_lines_frac": (
        "lines that end with an ellipsis",
        _lines(lambda line: line.endswith(("...", "…"))),
    ),
    "dup_lines_frac": (_LINES, _repeated_lines),
    "dup_line_chars_frac": (_LINES, _repeated_lines),
}
