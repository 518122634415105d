"""Find the places of a text that a rule counts, so that a reader sees why the text was dropped."""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from data_prep.filters.repetition import Sequences
from data_prep.filters.units import BAD, LETTER, SPACE, Units

Span = tuple[int, int]
"""First character and the one after the last."""


def counted_places(reason: str, text: str) -> list[Span]:
    """What the rule that dropped a text counts in it: ascending, apart. Empty if it counts no places.

    Args:
        reason: as recorded, such as `max_dup_ngram_frac_5`.
    """
    if not text or text.isspace():
        return []
    name = reason.partition("_")[2]
    measure, _, n = name.rpartition("_")
    if measure in _OF_SEQUENCES and n.isdigit():
        return _joined(_of_sequences(text, int(n), _OF_SEQUENCES[measure]))
    return _joined(_PLACES[name](text)) if name in _PLACES else []


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
    text: str, n: int, choose: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[Span]:
    units = Units([text])
    hashes = units.hashes(np.arange(len(units.starts)))
    places, numbers = Sequences(hashes, units.text_of, units.lengths).repeated(n)
    places = choose(places, numbers) if len(places) else places
    return _spans(units.starts[places], units.ends[places + n - 1])


def _most_frequent(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return places[numbers == numbers[np.argmax(np.bincount(numbers)[numbers])]]


def _all_but_the_first(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.delete(places, np.unique(numbers, return_index=True)[1])


_OF_SEQUENCES = {"top_ngram_frac": _most_frequent, "dup_ngram_frac": _all_but_the_first}
_PLACES: dict[str, Callable[[str], Iterator[Span]]] = {
    "bad_chars_frac": _characters(lambda units: units.has(BAD)),
    "letters_frac": _characters(lambda units: ~units.has(LETTER | SPACE)),
    "alpha_words_frac": _units(lambda units: ~units.has_letter),
    "avg_word_length": _units(lambda units: units.is_word & (units.lengths == units.lengths.max())),
    "symbols_frac": _symbols,
    "bullet_lines_frac": _lines(lambda line: line.startswith(("•", "-"))),
    "ellipsis_lines_frac": _lines(lambda line: line.endswith(("...", "…"))),
    "dup_lines_frac": _repeated_lines,
    "dup_line_chars_frac": _repeated_lines,
}
