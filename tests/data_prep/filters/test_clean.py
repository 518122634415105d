"""The German preset decides about each of sixty documents written for it; measures agree with datatrove's.

All measures, of many texts at a time, are bit for bit those of their definitions (naive_measures.py).
"""

import random
import re
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.filters.clean import Filters
from data_prep.filters.limits import PRESETS, FilterOptions, Limits, around_deduplication
from data_prep.filters.measures import Texts
from tests.data_prep.filters import naive_measures
from tests.german import german_texts


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
NGRAMS = range(1, 11)
ALL = Filters(
    Limits(
        **{name: 10**9 for name in vars(Limits()) if name.startswith("max_") and "ngram" not in name},
        **{name: 0 for name in vars(Limits()) if name.startswith("min_")},
        max_top_ngram_frac=dict.fromkeys(NGRAMS, 9.0),
        max_dup_ngram_frac=dict.fromkeys(NGRAMS, 0.0),  # above its limit a share is exact
        stop_words=GERMAN.limits.stop_words,
    )
)


def reason_against(filters, text, metadata=None, tokens=0):
    """About a text between others, on which it must not depend."""
    among = [text, "Der Hund", "", text, "\r"]
    reasons = filters.reasons_against(among, [metadata or {}] * 5, [tokens] * 5)
    assert reasons[0] == reasons[3]
    return reasons[0]


def measured(name, text):
    rule = next(rule for rule in ALL.rules if rule.name == name)
    return rule.measure(Texts([text], [{}], [0], ALL.limits.stop_words))[0]


def assert_as_defined(texts):
    texts = [text for text in texts if text.strip()]
    tokens = list(range(len(texts)))
    together = Texts(texts, [{}] * len(texts), tokens, ALL.limits.stop_words)
    values = {rule.name: rule.measure(together) for rule in ALL.rules}
    for number, text in enumerate(texts):
        expected = naive_measures.measure(text, ALL.limits.stop_words, tokens[number], NGRAMS)
        assert {name: values[name][number].item() for name in expected} == expected
        assert values.keys() - expected.keys() == {"language_score"}


@given(st.lists(st.text("ab .", min_size=1, max_size=80).filter(str.strip), max_size=4), st.floats(0, 1))
def test_a_share_that_is_not_exact_is_on_the_same_side_of_its_limit(texts, limit):
    rules = Filters(Limits(max_dup_ngram_frac=dict.fromkeys(NGRAMS, limit))).rules
    together = Texts(texts, [{}] * len(texts), [0] * len(texts))
    for rule in rules:
        n = int(rule.name.rpartition("_")[2])
        exact = [
            naive_measures.dup_ngram(naive_measures.UNITS.findall(text), n) / len(text) for text in texts
        ]
        values = rule.measure(together)
        assert (values > limit).tolist() == [share > limit for share in exact]
        assert all(value in (share, min(value, limit)) for value, share in zip(values, exact, strict=True))


def test_measures_of_documents_are_those_of_their_definitions():
    documents = [document.values[0] for document in DOCUMENTS]
    often = ["\n".join([*text.split("\n")[:9]] * 2) for text in documents[:20]]
    assert_as_defined([*documents, *german_texts(60, seed=1), *often])


ANY = st.text() | st.text(st.sampled_from("aB1_٣.…-/=#•,\u00a0\u2028\x1c\x85\r\n \t\ue000K’😀ﬁ"), max_size=60)
_OFTEN = [
    "der",
    "Der",
    "DIE",
    "und",
    "3.",
    "...",
    "..",
    "…",
    "-",
    "--",
    "--hilfe",
    "und/oder",
    "#",
    "•",
    "İst",
]
PIECES = st.lists(st.sampled_from([*_OFTEN, "\t", "\r\n", "\n", "\n\n"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY | PIECES.map(" ".join) | PIECES.map("".join), max_size=6))
def test_measures_of_any_texts_are_those_of_their_definitions(texts):
    if any(map(str.strip, texts)):
        assert_as_defined(texts)


def test_there_are_sixty_documents():
    assert len({document.id for document in DOCUMENTS}) == len(DOCUMENTS) >= 60


@pytest.mark.parametrize(("text", "metadata", "expected"), DOCUMENTS)
def test_decision(text, metadata, expected):
    against = reason_against(GERMAN, text, metadata)
    assert (against["reason"] if against else "kept") == expected, against


WORDS = ("der", "Hund", "und", "die", "Katze", "3.", "läuft", "…", "-", "#", ",", "(", "x1", "!", "...")
OFTEN = [
    "der Hund und die Katze sehen in das Tal , wo es still ist",
    "- a b c d e f g",
    "und die Katze läuft ...",
]
LINES = st.lists(
    st.sampled_from(OFTEN) | st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join),
    min_size=4,
    max_size=14,
)
NO_REPETITION = {
    "dup_line_frac": 0,
    "dup_para_frac": 0,
    "dup_line_char_frac": 0,
    "dup_para_char_frac": 0,
    "top_n_grams": (),
    "dup_n_grams": (),
}
NO_FINEWEB = {"line_punct_thr": 0, "short_line_thr": 999, "char_duplicates_ratio": 9, "new_line_ratio": 999}
NO_GOPHER = {
    "min_doc_words": 0,
    "min_avg_word_length": 0,
    "max_avg_word_length": 0,
    "max_symbol_word_ratio": 0,
    "max_bullet_lines_ratio": 0,
    "max_ellipsis_lines_ratio": 0,
    "max_non_alpha_words_ratio": 0,
    "min_stop_words": 0,
    "stop_words": GERMAN.limits.stop_words,
}
# The rule of ours -> datatrove's filter with this one limit.
THEIRS = {
    "dup_lines_frac": lambda limit: GopherRepetitionFilter(**NO_REPETITION | {"dup_line_frac": limit}),
    "dup_line_chars_frac": lambda limit: GopherRepetitionFilter(
        **NO_REPETITION | {"dup_line_char_frac": limit}
    ),
    "top_ngram_frac_2": lambda limit: GopherRepetitionFilter(
        **NO_REPETITION | {"top_n_grams": ((2, limit),)}
    ),
    "top_ngram_frac_4": lambda limit: GopherRepetitionFilter(
        **NO_REPETITION | {"top_n_grams": ((4, limit),)}
    ),
    "dup_ngram_frac_5": lambda limit: GopherRepetitionFilter(
        **NO_REPETITION | {"dup_n_grams": ((5, limit),)}
    ),
    "dup_ngram_frac_7": lambda limit: GopherRepetitionFilter(
        **NO_REPETITION | {"dup_n_grams": ((7, limit),)}
    ),
    "new_lines_per_word": lambda limit: FineWebQualityFilter(**NO_FINEWEB | {"new_line_ratio": limit}),
    "words": lambda limit: GopherQualityFilter(**NO_GOPHER | {"max_doc_words": limit}),
    "avg_word_length": lambda limit: GopherQualityFilter(**NO_GOPHER | {"max_avg_word_length": limit}),
    "symbols_frac": lambda limit: GopherQualityFilter(**NO_GOPHER | {"max_symbol_word_ratio": limit}),
    "bullet_lines_frac": lambda limit: GopherQualityFilter(**NO_GOPHER | {"max_bullet_lines_ratio": limit}),
    "ellipsis_lines_frac": lambda limit: GopherQualityFilter(
        **NO_GOPHER | {"max_ellipsis_lines_ratio": limit}
    ),
    "alpha_words_frac": lambda limit: GopherQualityFilter(**NO_GOPHER | {"max_non_alpha_words_ratio": limit}),
    "stop_words": lambda limit: GopherQualityFilter(**NO_GOPHER | {"min_stop_words": limit}),
}


@pytest.mark.parametrize("name", THEIRS)
@settings(max_examples=40, deadline=None)
@given(lines=LINES)
def test_measures_are_those_of_datatrove(name, lines):
    """datatrove's filter, told to split into our words, draws its line exactly at the value measured here."""
    text = "\n".join(lines)
    assume(any(char.isalnum() for char in text))
    value = measured(name, text)
    assume(value)  # a limit of zero is none for theirs
    document = Document(text=text, id="")

    def keeps(limit):
        return THEIRS[name](limit).filter(document) is True

    kinds = ("fineweb_quality_filter", "gopher_quality_filter", "gopher_repetition_filter")
    with ExitStack() as stack:
        for kind in kinds:
            splitter = mock.patch(f"datatrove.pipeline.filters.{kind}.split_into_words", our_words)
            stack.enter_context(splitter)
        is_minimum = name in ("alpha_words_frac", "stop_words")
        stricter = value * (1 + 1e-9) if is_minimum else value * (1 - 1e-9)
        assert keeps(value)
        assert not keeps(stricter)


def test_one_repeated_sequence_of_five_is_noticed():
    assert measured("dup_ngram_frac_5", "a b c d e x a b c d e") == 5 / 21
    assert measured("dup_ngram_frac_5", "a b c d e x a b c d f") == 0
    assert measured("dup_ngram_frac_2", "an der en dar, aber eb aar.") == 0


REFRAIN = "Hei, der Wind, der Wind, er weht, so weit ein Schiff nach Norden geht!"
QUOTED = [
    "der Wind, er weht, so weit ein Schiff",
    "> Hei, der Wind, der Wind, er weht ...",
    "a b c d e f a b c d",
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([REFRAIN, *QUOTED, *OFTEN, "der Hund", "\t", " "]) | ANY, max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_refrains_and_quotations_count_once_for_sequences(poems):
    """With refrains, the shares are those of the text in which every line stands once."""
    texts = ["\n".join(["Lied", *poem]) for poem in poems]
    found, expected = (
        Texts(each, [{}] * len(texts), [0] * len(texts), (), refrains)
        for each, refrains in ((texts, True), (list(map(naive_measures.once, texts)), False))
    )
    for rule in ALL.rules:
        if "ngram" in rule.name:
            assert rule.measure(found).tolist() == rule.measure(expected).tolist()


def test_lines_of_a_few_phrases_in_any_order_are_no_quotations_to_be_left_alone():
    """All but the first are left out, and the rest is as repetitive as the whole."""
    rng = random.Random(1)
    phrases = [f"{text} und noch {number} Mal." for number, text in enumerate(german_texts(8, seed=2))]
    text = "\n".join(" ".join(rng.choices(phrases, k=3)) for _ in range(200))
    assert reason_against(Filters(Limits(refrains=True, max_dup_ngram_frac={5: 0.141})), text)


def our_words(text, language):
    return naive_measures.UNITS.findall(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_every_text_gets_a_decision(text):
    against = reason_against(GERMAN, text)
    assert against is None or against["reason"] == "empty" or {"value", "limit"} <= against.keys()


def test_tokens_per_word_and_signals_have_two_limits():
    filters = Filters(
        Limits(min_tokens_per_word=1.2, max_tokens_per_word=2.5, signals={"ccnet_perplexity": (None, 800)})
    )

    def reason(n_tokens, metadata):
        against = reason_against(filters, "vier Worte sind hier", metadata, n_tokens)
        return against and against["reason"]

    assert reason(6, {}) is None
    assert reason(4, {}) == "min_tokens_per_word"
    assert reason(11, {}) == "max_tokens_per_word"
    assert reason(6, {"signals": {"ccnet_perplexity": 800.5}}) == "max_signal_ccnet_perplexity"
    assert reason(6, {"signals": {"ccnet_perplexity": 800}}) is None


def test_what_is_given_overrules_the_preset_zero_included():
    options = FilterOptions(preset="fineweb2_german", min_words=0, max_top_ngram_frac={2: 0.5})
    limits = options.limits()
    assert (limits.min_words, limits.max_words) == (0, 100_000)
    assert limits.max_top_ngram_frac == {2: 0.5}
    assert FilterOptions(preset="none").limits() == Limits(language=["de"])
    assert FilterOptions(language=["de"]).limits().language == ["de"]


def test_each_limit_is_before_or_after_deduplication_and_length_is_both():
    limits, unset = PRESETS["german"], Limits()
    before, after = around_deduplication(limits)
    for name, value in vars(limits).items():
        found = [
            getattr(part, name) for part in (before, after) if getattr(part, name) != getattr(unset, name)
        ]
        assert found == [value] * (
            2 if name in ("language", "min_words", "max_words") else value != getattr(unset, name)
        )


def test_a_listed_duplicate_goes_before_all_rules():
    assert reason_against(Filters(Limits()), "Text", {"source_duplicate": True}) == {
        "reason": "source_duplicate"
    }
