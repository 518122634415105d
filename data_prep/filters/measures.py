"""What the rules measure in texts: shares of characters, words and lines, and how much repeats.

Most measures are those of Gopher (arXiv:2112.11446) and FineWeb2 (arXiv:2506.20920), which finds words by
spaCy. docs/data_prep.md says how far the decisions agree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_prep.filters.repetition import Sequences, quotations, repeats
from data_prep.filters.units import BAD, LETTER, LINE_END, SPACE, Units, hashes_of


@dataclass
class Texts:
    """Texts and what is measured in them, computed on first use."""

    texts: Sequence[str]
    """Each has a character that is not white space."""
    metadata: Sequence[Mapping[str, Any]]
    tokens: Sequence[int]
    """Number of each text, without BOS and EOS; 0 if not counted."""
    stop_words: Iterable[str] = ()
    refrains: bool = False
    """Leave lines that repeat an earlier one, or quote, out of the sequences of units."""

    def __post_init__(self) -> None:
        self.open = np.ones(len(self), dtype=bool)
        """Texts about which nothing is decided; costly measures leave out the others."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def units(self) -> Units:
        """Words and punctuation marks."""
        return Units(self.texts)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Characters of each text."""
        return np.fromiter(map(len, self.texts), np.int64, len(self))

    def chars(self, bits: int) -> np.ndarray:
        """Characters of each text that are in one of these classes."""
        return np.add.reduceat(self.units.has(bits), self.units.text_starts, dtype=np.int64)

    def count(self, of_unit: np.ndarray) -> np.ndarray:
        """Sum over the units of each text."""
        firsts = np.searchsorted(self.units.starts, self.units.text_starts)
        return np.add.reduceat(of_unit, firsts, dtype=np.int64)

    @cached_property
    def n_units(self) -> np.ndarray:
        return np.bincount(self.units.text_of, minlength=len(self))

    @cached_property
    def n_words(self) -> np.ndarray:
        """Units with a letter or digit."""
        return self.count(self.units.is_word)

    @cached_property
    def n_white_space_words(self) -> np.ndarray:
        return np.bincount(self.units.text_at(self.units.word_starts), minlength=len(self))

    def strings(self, *searched: str) -> np.ndarray:
        """Occurrences of strings in each text."""
        return np.array([sum(map(text.count, searched)) for text in self.texts])

    @cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends of lines that are not blank, and whether each repeats an earlier one."""
        units = self.units
        breaks = np.flatnonzero(units.points == ord("\n"))
        starts = np.sort(np.concatenate((units.text_starts, breaks + 1)))
        ends = np.sort(np.concatenate((units.text_starts + self.sizes, breaks)))
        filled = np.diff(np.searchsorted(units.word_starts, np.append(starts, len(units.points)))) > 0
        starts, ends = starts[filled], ends[filled]
        return starts, ends, repeats(units.hashes_between(starts, ends), units.text_at(starts))

    @cached_property
    def repeated_lines(self) -> np.ndarray:
        """int64 (texts, 3): lines that repeat an earlier one, their characters, lines; without blank ones."""
        starts, ends, again = self._lines
        texts = self.units.text_at(starts)
        counts = [
            np.bincount(texts, weights, len(self)) for weights in (again, again * (ends - starts), None)
        ]
        return np.stack(counts, axis=1).astype(np.int64)

    @cached_property
    def _line_of(self) -> np.ndarray:
        """int64 (units,): number of the line in `_lines`."""
        return np.searchsorted(self._lines[0], self.units.starts, "right") - 1

    @cached_property
    def _left_out(self) -> np.ndarray:
        """bool (lines,): lines of the open texts that are left out of the sequences.

        Lines that repeat an earlier one, and quotations: lines of five words or more of which every sequence
        of five came before. Punctuation does not count, for it marks quotations.
        """
        again = self._lines[2]
        if not self.refrains:
            return np.zeros_like(again)
        units = self.units
        words = np.flatnonzero(units.is_word & self.open[units.text_of])
        found = quotations(units.hashes[words], units.text_of[words], self._line_of[words], len(again))
        return again | found

    @cached_property
    def sizes_of_sequences(self) -> np.ndarray:
        """Characters of each text without the lines that are left out; at least those of its first line."""
        starts, ends, _ = self._lines
        left_out = np.bincount(self.units.text_at(starts), self._left_out * (ends + 1 - starts), len(self))
        return self.sizes - left_out.astype(np.int64)

    @cached_property
    def _edges_of_lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the white-space words that begin and that end a line; lines of each text."""
        units, ends = self.units, self.units.has(LINE_END)
        after = np.cumsum(ends)
        ends[1:] &= ~((units.points[1:] == 10) & (units.points[:-1] == 13))  # \r\n is one
        line = after[units.word_starts]
        text = units.text_at(units.word_starts)
        changes = np.ones(len(line) + 1, dtype=bool)
        changes[1:-1] = (line[1:] != line[:-1]) | (text[1:] != text[:-1])
        last = units.text_starts + self.sizes - 1
        n_lines = np.add.reduceat(ends, units.text_starts, dtype=np.int64)
        n_lines += (units.classes[last] & LINE_END) == 0
        return np.flatnonzero(changes[:-1]), np.flatnonzero(changes[1:]), n_lines

    def lines_frac(self, at_end: bool, holds: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Share of lines whose first or last word has a mark.

        Args:
            holds: is given the characters, and places of beginnings or after ends.
        """
        first, last, n_lines = self._edges_of_lines
        places = self.units.word_ends[last] if at_end else self.units.word_starts[first]
        texts = self.units.text_at(places if not at_end else self.units.word_starts[last])
        return np.bincount(texts[holds(self.units.points, places)], minlength=len(self)) / n_lines

    @cached_property
    def n_stop_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Different stop words of each text as they are given, and all in any capitalisation."""
        units, hashes = self.units, np.sort(hashes_of(self.stop_words))
        short = units.is_word & (units.lengths <= max(map(len, self.stop_words), default=0))
        which = np.flatnonzero(short & self.open[units.text_of])
        texts, exact = units.text_of[which], units.hashes[which]
        given = np.isin(exact, hashes)
        pairs = np.unique(texts[given] * len(hashes) + np.searchsorted(hashes, exact[given]))
        different = np.bincount(pairs // max(len(hashes), 1), minlength=len(self))
        in_any_case = np.isin(units.lower_hashes(which), hashes)
        return different, np.bincount(texts[in_any_case], minlength=len(self))

    @cached_property
    def in_sequences(self) -> np.ndarray:
        """int64: numbers of the units of which `sequences` are, of the open texts."""
        wanted = self.open[self.units.text_of]
        wanted &= ~self._left_out[self._line_of]
        return np.flatnonzero(wanted)

    @cached_property
    def sequences(self) -> Sequences:
        which = self.in_sequences
        return Sequences(self.units.hashes[which], self.units.text_of[which], self.units.lengths[which])


def _begins_with_bullet(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.isin(points[places], (ord("•"), ord("-")))


def _ends_with_ellipsis(points: np.ndarray, ends: np.ndarray) -> np.ndarray:
    points_only = (points[ends - 1] == 46) & (points[ends - 2] == 46) & (points[ends - 3] == 46)
    return points_only | (points[ends - 1] == ord("…"))


def language_score(texts: Texts) -> list[float | None]:
    """The score that came with each document, or None."""
    return [_number(metadata.get("language_score")) for metadata in texts.metadata]


def _number(value: Any) -> float | None:
    """None for what is none: text, or a NaN of Parquet, which no limit would judge."""
    return value if isinstance(value, (int, float)) and not math.isnan(value) else None


def _letters_frac(texts: Texts) -> np.ndarray:
    visible = texts.sizes - texts.chars(SPACE) + 1  # the space after the text
    return 1 - (visible - texts.chars(LETTER)) / visible


def _symbols_frac(texts: Texts) -> np.ndarray:
    return np.maximum(texts.strings("#"), texts.strings("...", "…")) / texts.n_units


def signal(texts: Texts, name: str) -> list[float | None]:
    """A quality signal that came with the documents."""
    return [signal_of(metadata, name) for metadata in texts.metadata]


def signal_of(metadata: Mapping[str, Any], name: str) -> float | None:
    """A number of the field `signals`; None if the document has no such field or signal."""
    signals = metadata.get("signals")
    return _number(signals.get(name)) if isinstance(signals, dict) else None


def _top_ngram_frac(texts: Texts, n: int, limit: float) -> np.ndarray:
    return texts.sequences.top_chars(n, texts.open) / texts.sizes_of_sequences


def _dup_ngram_frac(texts: Texts, n: int, limit: float) -> np.ndarray:
    """A share that is not above the limit may be given too high, but not above it."""
    most = texts.sequences.most_dup_chars(n, len(texts)) / texts.sizes_of_sequences
    above = texts.open & (most > limit)
    return np.where(above, texts.sequences.dup_chars(n, above) / texts.sizes_of_sequences, most)


Measure = Callable[[Texts], Sequence[float | None] | np.ndarray]
MEASURES: dict[str, Measure] = {
    "language_score": language_score,
    "words": lambda texts: texts.n_words,
    "tokens_per_word": lambda texts: np.array(texts.tokens) / texts.n_white_space_words,
    "bad_chars_frac": lambda texts: texts.chars(BAD) / texts.sizes,
    "letters_frac": _letters_frac,
    "alpha_words_frac": lambda texts: texts.count(texts.units.has_letter) / texts.n_units,
    "avg_word_length": lambda texts: (
        texts.count(texts.units.lengths * texts.units.is_word) / np.maximum(texts.n_words, 1)
    ),
    "symbols_frac": _symbols_frac,
    "bullet_lines_frac": lambda texts: texts.lines_frac(False, _begins_with_bullet),
    "ellipsis_lines_frac": lambda texts: texts.lines_frac(True, _ends_with_ellipsis),
    "new_lines_per_word": lambda texts: texts.strings("\n") / texts.n_units,
    "dup_lines_frac": lambda texts: texts.repeated_lines[:, 0] / np.maximum(texts.repeated_lines[:, 2], 1),
    "dup_line_chars_frac": lambda texts: texts.repeated_lines[:, 1] / texts.sizes,
    "stop_words": lambda texts: texts.n_stop_words[0],
    "stop_words_frac": lambda texts: texts.n_stop_words[1] / np.maximum(texts.n_words, 1),
    "lower_case_words_frac": lambda texts: (
        texts.count(texts.units.begins_small) / np.maximum(texts.n_words, 1)
    ),
}
"""Each gives a value for every text, or None where the document does not have it."""
NGRAM_MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "top_ngram_frac": _top_ngram_frac,
    "dup_ngram_frac": _dup_ngram_frac,
}
"""By the number of units n, given the limit."""
