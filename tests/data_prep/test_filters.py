"""The German preset decides about each of sixty documents written for it; measures agree with datatrove's."""

import dataclasses
import re
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.filters import PRESETS, Filters, Limits, Text, with_preset


def documents():
    """`=== name: expected [language score]` and the text; ␂ stands for the control character."""
    content = (Path(__file__).parent / "filter_documents.txt").read_text(encoding="utf-8")
    parts = re.split(r"^=== (\S+): (\S+)(?: (\S+))?\n", content, flags=re.MULTILINE)
    for name, expected, score, text in zip(*(parts[i::4] for i in range(1, 5)), strict=True):
        metadata = {"language_score": float(score)} if score else {}
        text = text.removesuffix("\n").removesuffix("\n").replace("␂", "\x02")
        yield pytest.param(text, metadata, expected, id=name)


DOCUMENTS = list(documents())
GERMAN = Filters(PRESETS["german"])


def test_there_are_sixty_documents():
    assert len({document.id for document in DOCUMENTS}) == len(DOCUMENTS) >= 60


@pytest.mark.parametrize(("text", "metadata", "expected"), DOCUMENTS)
def test_decision(text, metadata, expected):
    against = GERMAN.reason_against(Text(text, metadata, 0))
    assert (against["reason"] if against else "kept") == expected, against


WORDS = ["der", "Hund", "und", "die", "Katze", "laufen", "3.", "Straße", "…", "-", "#", ",", "(", "x1", "!"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from(WORDS), max_size=8),
            st.sampled_from([["-", "a"], ["der", "Hund", "und", "die", "Katze", "sehen", "in", "das", "Tal"]]),
        ),
        min_size=1,
        max_size=14,
    )
)
def test_measures_are_those_of_datatrove(lines):
    """datatrove's filters, told to split into our words, drop exactly what FineWeb2's settings drop here."""
    text = "\n".join(" ".join(line) for line in lines)
    limits = dataclasses.replace(PRESETS["fineweb2_german"], min_words=5)
    theirs = [
        GopherRepetitionFilter(
            dup_line_frac=limits.max_dup_lines_frac,
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            top_n_grams=tuple(limits.max_top_ngram_frac.items()),
            dup_n_grams=tuple(limits.max_dup_ngram_frac.items()),
        ),
        FineWebQualityFilter(
            line_punct_thr=0,
            short_line_thr=999,
            char_duplicates_ratio=1,  # theirs leaves line ends out of the text's length
            new_line_ratio=limits.max_new_lines_per_word,
        ),
        GopherQualityFilter(
            min_doc_words=limits.min_words,
            min_avg_word_length=0,
            max_avg_word_length=limits.max_avg_word_length,
            max_non_alpha_words_ratio=limits.min_alpha_words_frac,
            min_stop_words=limits.min_stop_words,
            stop_words=limits.stop_words,
        ),
    ]
    ours = Filters(dataclasses.replace(limits, max_dup_line_chars_frac=1)).reason_against(Text(text, {}, 0))

    def our_words(text, language):
        return Text(text, {}, 0).units

    document = Document(text=text, id="")
    names = ("fineweb_quality_filter", "gopher_quality_filter", "gopher_repetition_filter")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(
                mock.patch(f"datatrove.pipeline.filters.{name}.split_into_words", our_words)
            )
        assume(any(char.isalnum() for char in text))  # theirs divides by the number of words
        kept = all(one.filter(document) is True for one in theirs)
    assert (ours is None) == kept, ours


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_every_text_gets_a_decision(text):
    against = GERMAN.reason_against(Text(text, {}, 0))
    assert against is None or against["reason"] == "empty" or {"value", "limit"} <= against.keys()


def test_tokens_per_word_and_signals_have_two_limits():
    filters = Filters(
        Limits(min_tokens_per_word=1.2, max_tokens_per_word=2.5, signals={"ccnet_perplexity": [None, 800]})
    )

    def reason(n_tokens, metadata):
        against = filters.reason_against(Text("vier Worte sind hier", metadata, n_tokens))
        return against and against["reason"]

    assert reason(6, {}) is None
    assert reason(4, {}) == "min_tokens_per_word"
    assert reason(11, {}) == "max_tokens_per_word"
    assert reason(6, {"signals": {"ccnet_perplexity": 800.5}}) == "max_signal_ccnet_perplexity"
    assert reason(6, {"signals": {"ccnet_perplexity": 800}}) is None


def test_what_is_given_overrules_the_preset_zero_included():
    limits = with_preset(Limits(min_words=0, max_top_ngram_frac={2: 0.5}), "fineweb2_german")
    assert (limits.min_words, limits.max_words) == (0, 100_000)
    assert limits.max_top_ngram_frac == {2: 0.5}
    assert with_preset(Limits(), "none") == Limits()


def test_a_listed_duplicate_goes_before_all_rules():
    assert Filters(Limits()).reason_against(Text("Text", {"source_duplicate": True}, 0)) == {
        "reason": "source_duplicate"
    }
