"""Which documents are worth keeping: measures of a text, and a limit for each.

A rule is a measure and a limit; its name, with `min_` or `max_`, is the flag that sets the limit and the
reason given for a document that breaks it. Most measures are those of Gopher (arXiv:2112.11446) and FineWeb2
(arXiv:2506.20920). Words are found by a regular expression, not by spaCy as in FineWeb2, which takes thirty
times as long; docs/data_prep.md says how far the decisions agree.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

from lit_gpt.option_types import NonNegativeFloat, NonNegativeInt, PositiveInt, show

# Marks that begin a word or stand in it are part of it (--hilfe, und/oder), as is the point of a number.
_UNITS = re.compile(r"[-/\\~@|+=]*\w(?:\S*\w)?(?:(?<=\d)\.)?|[-/\\~@|+=]+|\.+|[^\w\s]")
_WORD_CHAR = re.compile(r"\w")
_LETTERS = re.compile(r"[^\W\d_]+")
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")


@dataclass(kw_only=True)
class Limits:
    """Limits of the rules. What is not given is the preset's; extreme values switch a rule off."""

    min_language_score: float | None = None
    """Language score that came with the document; without one it passes."""
    min_words: NonNegativeInt | None = None
    """Words, marks not counted."""
    max_words: NonNegativeInt | None = None
    """Words, marks not counted."""
    min_tokens_per_word: NonNegativeFloat | None = None
    """Tokens of --tokenizer for each white-space word."""
    max_tokens_per_word: NonNegativeFloat | None = None
    """Tokens of --tokenizer for each white-space word: chords, tables, code and noise have many."""
    max_bad_chars_frac: NonNegativeFloat | None = None
    """Share of characters that are control, private use or the sign for an undecodable byte."""
    min_letters_frac: NonNegativeFloat | None = None
    """Share of letters in the characters that are not white space."""
    min_alpha_words_frac: NonNegativeFloat | None = None
    """Share of words and marks that have a letter (FineWeb2 calls it max_non_alpha_words_ratio)."""
    max_avg_word_length: NonNegativeFloat | None = None
    """Characters in a word on average."""
    stop_words: list[str] = field(default_factory=list)
    """Words that running text of the language has."""
    min_stop_words: NonNegativeInt | None = None
    """Different stop words."""
    min_stop_words_frac: NonNegativeFloat | None = None
    """Share of the words that are stop words, however capitalised."""
    max_symbols_frac: NonNegativeFloat | None = None
    """Number signs, and ellipses, for each word or mark."""
    max_bullet_lines_frac: NonNegativeFloat | None = None
    """Share of lines that begin with a bullet or a dash."""
    max_ellipsis_lines_frac: NonNegativeFloat | None = None
    """Share of lines that end with an ellipsis."""
    max_new_lines_per_word: NonNegativeFloat | None = None
    """Line ends for each word or mark: lists and menus have many."""
    max_dup_lines_frac: NonNegativeFloat | None = None
    """Share of lines that repeat an earlier line of the document."""
    max_dup_line_chars_frac: NonNegativeFloat | None = None
    """Share of characters in lines that repeat an earlier one."""
    max_top_ngram_frac: dict[PositiveInt, NonNegativeFloat] = field(default_factory=dict)
    """n -> share of the characters in the most frequent sequence of n words."""
    max_dup_ngram_frac: dict[PositiveInt, NonNegativeFloat] = field(default_factory=dict)
    """n -> share of the characters in sequences of n words that occurred before."""
    signals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Name of a quality signal that came with the document -> [lowest, highest], either may be null."""


_STOP_WORDS = "der und die in von im den des mit das er dem als wurde für"
_FINEWEB2_GERMAN = Limits(
    min_language_score=0.821,
    min_words=50,
    max_words=100_000,
    max_avg_word_length=15,
    max_symbols_frac=0.1,
    max_bullet_lines_frac=0.9,
    max_ellipsis_lines_frac=0.3,
    min_alpha_words_frac=0.774,
    stop_words=_STOP_WORDS.split(),
    min_stop_words=2,
    max_dup_lines_frac=0.263,
    max_dup_line_chars_frac=0.1,
    max_new_lines_per_word=0.152,
    max_top_ngram_frac={2: 0.169, 3: 0.153, 4: 0.137},
    max_dup_ngram_frac={5: 0.141, 6: 0.134, 7: 0.126, 8: 0.117, 9: 0.108, 10: 0.098},
)
PRESETS = {
    "fineweb2_german": _FINEWEB2_GERMAN,
    # FineWeb2 counts marks as words without a letter, and so drops dialogue; other rules do what is meant.
    "german": dataclasses.replace(
        _FINEWEB2_GERMAN,
        min_alpha_words_frac=0.7,
        max_bad_chars_frac=0.001,
        min_letters_frac=0.8,
        min_stop_words_frac=0.06,
    ),
    "none": Limits(),
}


def preset_values() -> dict[str, str]:
    """What the presets set each limit to, for `--help`."""
    shown = {}
    for limit in dataclasses.fields(Limits):
        presets_of: dict[str, list[str]] = {}
        for preset, limits in PRESETS.items():
            if (value := getattr(limits, limit.name)) not in (None, [], {}):
                presets_of.setdefault(show(value), []).append(preset)
        given = [f"{' and '.join(presets)}: {value}" for value, presets in presets_of.items()]
        shown[limit.name] = ", ".join(given) or "no preset has one"
    return shown


def with_preset(limits: Limits, preset: str) -> Limits:
    """The limits given, and the preset's where none is."""
    fallback = PRESETS[preset]
    names = [limit.name for limit in dataclasses.fields(Limits)]
    # An empty list or table is as good as none; zero is a limit.
    chosen = {name: getattr(limits, name) for name in names if getattr(limits, name) not in (None, [], {})}
    return dataclasses.replace(fallback, **chosen)


class Text:
    """A text and what rules ask of it, worked out when first asked for."""

    def __init__(self, text: str, metadata: Mapping[str, Any], n_tokens: int) -> None:
        self.text = text
        self.metadata = metadata
        self.n_tokens = n_tokens
        self.unrepeated: int | None = None
        """A number of units of which no two sequences are equal, once one is known; of more none are."""

    @cached_property
    def units(self) -> list[str]:
        """Words and single marks."""
        return _UNITS.findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        """Units that are no marks."""
        return [unit for unit in self.units if unit[0].isalnum() or _WORD_CHAR.search(unit)]

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    def ngrams(self, n: int) -> list[tuple[str, ...]]:
        """All sequences of n units."""
        return list(zip(*(self.units[start:] for start in range(n)), strict=False))

    def per_unit(self, number: float) -> float:
        """For each word or mark."""
        return number / max(len(self.units), 1)


def _language_score(text: Text) -> float | None:
    score = text.metadata.get("language_score")
    return score if isinstance(score, (int, float)) else None


def _letters_frac(text: Text) -> float:
    visible = "".join(text.text.split())
    return 1 - len(_LETTERS.sub("", visible)) / max(len(visible), 1)


def _alpha_words_frac(text: Text) -> float:
    return text.per_unit(sum(1 for word in text.words if word.isalpha() or _LETTERS.search(word)))


def _symbols_frac(text: Text) -> float:
    ellipses = text.text.count("...") + text.text.count("…")
    return text.per_unit(max(text.text.count("#"), ellipses))


def _lines_frac(lines: list[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, lines)) / max(len(lines), 1)


def _top_ngram_frac(text: Text, n: int) -> float:
    counts = Counter(text.ngrams(n))
    if not counts:
        return 0.0
    words, count = max(counts.items(), key=lambda item: item[1])
    return (sum(map(len, words)) + n - 1) * count / len(text.text)


def _dup_ngram_frac(text: Text, n: int) -> float:
    """Characters of sequences that came before, no unit counted twice."""
    if text.unrepeated is not None and n >= text.unrepeated:
        return 0.0
    ngrams = text.ngrams(n)
    if len(set(ngrams)) == len(ngrams):
        text.unrepeated = n
        return 0.0
    seen: set[tuple[str, ...]] = set()
    place = repeated = 0
    while place < len(ngrams):
        if (ngram := ngrams[place]) in seen:
            repeated += sum(map(len, ngram))
            place += n
        else:
            seen.add(ngram)
            place += 1
    return repeated / len(text.text)


_MEASURES: dict[str, Callable[[Text], float | None]] = {
    "language_score": _language_score,
    "words": lambda text: len(text.words),
    "tokens_per_word": lambda text: text.n_tokens / max(len(text.text.split()), 1),
    "bad_chars_frac": lambda text: len(_BAD.findall(text.text)) / len(text.text),
    "letters_frac": _letters_frac,
    "alpha_words_frac": _alpha_words_frac,
    "avg_word_length": lambda text: sum(map(len, text.words)) / max(len(text.words), 1),
    "symbols_frac": _symbols_frac,
    "bullet_lines_frac": lambda text: _lines_frac(
        text.text.splitlines(), lambda line: line.lstrip().startswith(("•", "-"))
    ),
    "ellipsis_lines_frac": lambda text: _lines_frac(
        text.text.splitlines(), lambda line: line.rstrip().endswith(("...", "…"))
    ),
    "new_lines_per_word": lambda text: text.per_unit(text.text.count("\n")),
    "dup_lines_frac": lambda text: find_duplicates(text.lines)[0] / max(len(text.lines), 1),
    "dup_line_chars_frac": lambda text: find_duplicates(text.lines)[1] / len(text.text),
}


@dataclass(frozen=True)
class Rule:
    """A measure that has to lie between two limits."""

    name: str
    measure: Callable[[Text], float | None]
    """None where the document does not have it: then the rule does not apply."""
    low: float | None
    high: float | None

    def broken(self, text: Text) -> dict[str, Any] | None:
        """`reason, value, limit` if the text breaks the rule."""
        value = self.measure(text)
        if value is None:
            return None
        if self.low is not None and value < self.low:
            return {"reason": f"min_{self.name}", "value": round(value, 4), "limit": self.low}
        if self.high is not None and value > self.high:
            return {"reason": f"max_{self.name}", "value": round(value, 4), "limit": self.high}
        return None


class Filters:
    """All rules with a limit, the cheap ones first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rules = [
            Rule(name, measure, getattr(limits, f"min_{name}", None), getattr(limits, f"max_{name}", None))
            for name, measure in (_MEASURES | _stop_word_measures(limits.stop_words)).items()
        ]
        self.rules += [_signal_rule(name, *bounds) for name, bounds in limits.signals.items()]
        for name, measure in (("top_ngram_frac", _top_ngram_frac), ("dup_ngram_frac", _dup_ngram_frac)):
            for n, high in sorted(getattr(limits, f"max_{name}").items()):
                self.rules.append(Rule(f"{name}_{n}", _of_length(measure, n), None, high))
        self.rules = [rule for rule in self.rules if (rule.low, rule.high) != (None, None)]

    def reason_against(self, text: Text) -> dict[str, Any] | None:
        """Why the text is not kept: the first rule it breaks; None if it is kept."""
        if not text.text.strip():
            return {"reason": "empty"}
        if text.metadata.get("source_duplicate"):
            return {"reason": "source_duplicate"}
        return next((broken for rule in self.rules if (broken := rule.broken(text))), None)


def _stop_word_measures(stop_words: list[str]) -> dict[str, Callable[[Text], float | None]]:
    exact = set(stop_words)
    return {
        "stop_words": lambda text: len(exact.intersection(text.words)),
        "stop_words_frac": lambda text: (
            sum(word.lower() in exact for word in text.words) / max(len(text.words), 1)
        ),
    }


def _signal_rule(name: str, low: float | None, high: float | None) -> Rule:
    return Rule(f"signal_{name}", lambda text: text.metadata.get("signals", {}).get(name), low, high)


def _of_length(measure: Callable[[Text, int], float], n: int) -> Callable[[Text], float]:
    return lambda text: measure(text, n)
