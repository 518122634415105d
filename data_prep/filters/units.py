r"""Split texts into words and punctuation marks by arrays of characters, many texts at a time.

A unit is what this regular expression finds:

    [-/\\~@|+=]*\w(?:\S*\w)?(?:(?<=\d)\.)?|[-/\\~@|+=]+|\.+|[^\w\s]

So of a white-space word, all from its first to its last letter, digit or underscore is one unit (und/oder),
with the joining characters before it (--hilfe) and the point after a digit (3.). What stands around it is
split into runs of joining characters, runs of points, and single characters.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache, cached_property

import numpy as np

LETTER, BAD, SPACE, WORD, DIGIT, JOINER, POINT, LINE_END = (1 << bit for bit in range(8))
_CLASSES = {
    LETTER: r"[^\W\d_]+",
    BAD: "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]+",
    SPACE: r"\s+",
    WORD: r"\w+",
    DIGIT: r"\d+",
    JOINER: r"[-/\\~@|+=]+",
    POINT: r"\.+",
    LINE_END: "[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+",  # those of str.splitlines
}
_CODE_POINTS = 0x110000


@cache
def _classes() -> np.ndarray:
    """uint8 (code points,): the classes of each character, as bits."""
    classes = np.zeros(_CODE_POINTS, dtype=np.uint8)
    every = "".join(map(chr, range(_CODE_POINTS)))
    for bit, characters in _CLASSES.items():
        for found in re.finditer(characters, every):
            classes[slice(*found.span())] |= bit
    return classes


@cache
def _lower() -> np.ndarray:
    """uint32 (code points,): each character in lower case, if that is one character."""
    lower = [ord(small) if len(small := chr(point).lower()) == 1 else point for point in range(0x10000)]
    return np.concatenate((np.array(lower, "<u4"), np.arange(0x10000, _CODE_POINTS, dtype="<u4")))


@cache
def _small() -> np.ndarray:
    """bool (code points,): whether each is a small letter."""
    small = np.zeros(_CODE_POINTS, dtype=bool)
    small[:0x20000] = [chr(point).islower() for point in range(0x20000)]  # beyond are ideographs and controls
    return small


def code_points(text: str) -> np.ndarray:
    """uint32 (characters,)"""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Units:
    """The words and punctuation marks of texts, in order.

    Args:
        texts: each has a character that is not white space.

    Attributes:
        points, classes: of all texts, with white space before, between and after them.
        text_starts: int64 (texts,), place of the first character of each.
        starts, ends: int64 (units,), places of their first and after their last character.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.points = code_points(f" {' '.join(texts)} ")
        self.classes = _classes()[self.points]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        self.text_starts = np.cumsum(sizes + 1) - sizes
        self._words_before = np.cumsum(self.has(WORD), dtype=np.int32)
        self._letters_before = np.cumsum(self.has(LETTER), dtype=np.int32)
        visible = ~self.has(SPACE)
        edges = np.flatnonzero(visible[1:] != visible[:-1]) + 1
        self.word_starts, self.word_ends = edges[0::2], edges[1::2]
        """Of white-space words."""
        begins = self._begins(visible)
        borders = np.flatnonzero(begins | ~visible)
        which = np.flatnonzero(begins[borders])
        self.starts, self.ends = borders[which], borders[which + 1]

    def has(self, bits: int) -> np.ndarray:
        """bool (characters,)"""
        return (self.classes & bits) != 0

    def _begins(self, visible: np.ndarray) -> np.ndarray:
        """bool (characters,): where units begin."""
        begins, joiner, point = visible.copy(), self.has(JOINER), self.has(POINT)
        begins[1:] &= ~(joiner[1:] & joiner[:-1] | point[1:] & point[:-1])
        first, last = self._first_and_last()
        joined = np.flatnonzero(joiner[first - 1])
        others = np.flatnonzero(~joiner)
        first[joined] = others[np.searchsorted(others, first[joined]) - 1] + 1
        end = last + 1 + (self.has(DIGIT)[last] & point[last + 1])
        change = np.zeros(len(begins), dtype=np.int8)
        change[first], change[end] = 1, -1
        begins &= np.cumsum(change, dtype=np.int8) == 0
        begins[first] = True
        begins[end] = visible[end]
        return begins

    def _first_and_last(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the first and the last word character of the white-space words that have one."""
        places = np.flatnonzero(self.has(WORD))
        before = self._words_before[self.word_starts - 1]
        after = self._words_before[self.word_ends - 1]
        having = after > before
        return places[before[having]], places[after[having] - 1]

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts

    @cached_property
    def text_of(self) -> np.ndarray:
        """int64 (units,): number of the text."""
        return self.text_at(self.starts)

    def text_at(self, places: np.ndarray) -> np.ndarray:
        """Number of the text at each of ascending places."""
        edges = np.searchsorted(places, self.text_starts)
        return np.repeat(np.arange(len(edges)), np.diff(edges, append=len(places)))

    @cached_property
    def is_word(self) -> np.ndarray:
        """bool (units,): has a letter, digit or underscore."""
        return self._words_before[self.ends - 1] > self._words_before[self.starts - 1]

    @cached_property
    def has_letter(self) -> np.ndarray:
        return self._letters_before[self.ends - 1] > self._letters_before[self.starts - 1]

    @cached_property
    def begins_small(self) -> np.ndarray:
        """bool (units,): whether the first character is a small letter."""
        return _small()[self.points[self.starts]]

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (units,)"""
        return self.hashes_between(self.starts, self.ends)

    def hashes_between(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64: sums of a pseudo-random number for each character times powers of an odd number.

        Different strings have the same hash with probability 2^-64. Of the same characters in another order
        it is 2^-56 for words, and up to 2^-44 for lines, in which characters may have changed places 2^18
        apart. Constructed ones may collide.
        """
        inverse = _powers(_INVERSE, len(self.points))
        return (self._sums[ends - 1] - self._sums[starts - 1]) * inverse[starts]

    @cached_property
    def _sums(self) -> np.ndarray:
        """uint64 (characters,)"""
        sums = _scattered()[self.points]
        sums *= _powers(_BASE, len(sums))
        return np.cumsum(sums, out=sums)

    def lower_hashes(self, which: np.ndarray) -> np.ndarray:
        """uint64: the hashes that some units have in lower case."""
        lengths = self.lengths[which]
        firsts = np.cumsum(lengths) - lengths
        offsets = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
        points = self.points[np.repeat(self.starts[which], lengths) + offsets]
        return _hashes(_lower()[points], offsets, firsts)


_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MOST_CHARACTERS = 1 << 19  # of texts measured together, unless one is longer


@cache
def _scattered() -> np.ndarray:
    """uint64 (code points,): a pseudo-random number for each."""
    scattered = np.arange(1, _CODE_POINTS + 1, dtype=np.uint64)
    for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        scattered *= np.uint64(factor)
        scattered ^= scattered >> np.uint64(31)
    return scattered


def _powers(base: int, n: int) -> np.ndarray:
    """uint64 (n,): powers of an odd number from 0 on."""
    return _first_powers(base)[:n] if n <= _MOST_CHARACTERS else _new_powers(base, n)


def _new_powers(base: int, n: int) -> np.ndarray:
    powers = np.full(n, base, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers, out=powers)


@cache
def _first_powers(base: int) -> np.ndarray:
    return _new_powers(base, _MOST_CHARACTERS)


def _hashes(points: np.ndarray, offsets: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    terms = _scattered()[points] * _powers(_BASE, int(offsets.max(initial=0)) + 1)[offsets]
    return np.add.reduceat(terms, firsts) if len(firsts) else terms


def hashes_of(strings: Iterable[str]) -> np.ndarray:
    """uint64 (strings,): the hashes that `Units` has for units of these letters; empty strings have none."""
    given = [string for string in strings if string]
    lengths = np.fromiter(map(len, given), np.int64, len(given))
    firsts = np.cumsum(lengths) - lengths
    return _hashes(code_points("".join(given)), np.arange(lengths.sum()) - np.repeat(firsts, lengths), firsts)
