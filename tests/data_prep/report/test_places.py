"""What is marked in a text is what the rule counts, by the definitions in naive_measures.py."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.language import LanguageIdentifier
from data_prep.filters.limits import PRESETS
from data_prep.reading.documents import Document
from data_prep.report.places import Marker
from tests.data_prep.filters.naive_measures import BAD, LETTERS, UNITS, measure

FILE = Path(__file__).parents[1] / "filters" / "filter_documents.txt"
TEXTS = [
    part.partition("\n")[2].replace("␂", "\x02")
    for part in re.split(r"^=== ", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
]
TEXTS = [text for text in TEXTS if text.strip()]
TEXTS += ["a b a b a b a b a b\n" * 4 + "- c…\r\n  • d ...\n\n## # …", "\ufffd(.)\ue000 ", "x"]


STOP_WORDS = PRESETS["german"].stop_words


def counted_places(reason, text, marker=None, **metadata):
    return (marker or Marker(STOP_WORDS)).places(reason, Document("", text, "", 1, metadata))


def characters(spans):
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))
    return {place for start, end in spans for place in range(start, end)}


def of_units(text, chosen):
    """Characters from the first to the last of n consecutive units, each by the numbers of such."""
    units = [unit.span() for unit in UNITS.finditer(text)]
    return {place for number, n in chosen for place in range(units[number][0], units[number + n - 1][1])}


@pytest.mark.parametrize("text", TEXTS)
def test_characters_and_lines(text):
    values, size = measure(text, ()), len(text)
    spans = {name: counted_places(f"max_{name}", text) for name in values}
    assert "".join(text[place] for place in sorted(characters(spans["bad_chars_frac"]))) == "".join(
        BAD.findall(text)
    )
    assert characters(spans["letters_frac"]) == {
        place for place, each in enumerate(text) if not each.isspace() and not LETTERS.match(each)
    }
    assert len(characters(spans["dup_line_chars_frac"])) == pytest.approx(
        values["dup_line_chars_frac"] * size
    )
    n_lines = len(text.splitlines())
    for name in ("bullet_lines_frac", "ellipsis_lines_frac"):
        assert len(spans[name]) == pytest.approx(values[name] * n_lines)
    marked = "".join(text[slice(*span)] for span in spans["symbols_frac"])
    n_symbols = marked.count("#") + marked.count("...") + marked.count("…")
    assert n_symbols == pytest.approx(values["symbols_frac"] * len(UNITS.findall(text)))
    assert spans["words"] == spans["new_lines_per_word"] == []


@pytest.mark.parametrize("text", TEXTS)
def test_words_and_sequences(text):
    units = UNITS.findall(text)
    longest = max(map(len, units))
    assert characters(counted_places("min_alpha_words_frac", text)) == of_units(
        text, [(number, 1) for number, unit in enumerate(units) if not LETTERS.search(unit)]
    )
    assert characters(counted_places("min_lower_case_words_frac", text)) == of_units(
        text, [(number, 1) for number, unit in enumerate(units) if unit[0].islower()]
    )
    assert characters(counted_places("max_avg_word_length", text)) == of_units(
        text,
        [(n, 1) for n, unit in enumerate(units) if len(unit) == longest and re.search(r"\w", unit)],
    )
    for name, form in (("min_stop_words", str), ("min_stop_words_frac", str.lower)):
        found = [(number, 1) for number, unit in enumerate(units) if form(unit) in STOP_WORDS]
        assert characters(counted_places(name, text)) == of_units(text, found)
    for n in (2, 5):
        ngrams = [tuple(units[number : number + n]) for number in range(len(units) - n + 1)]
        again = [number for number, ngram in enumerate(ngrams) if ngram in ngrams[:number]]
        marked = characters(counted_places(f"max_dup_ngram_frac_{n}", text))
        assert marked == of_units(text, [(number, n) for number in again])
        most = max(ngrams, key=ngrams.count) if again else None
        marked = characters(counted_places(f"max_top_ngram_frac_{n}", text))
        assert marked == of_units(text, [(k, n) for k, ngram in enumerate(ngrams) if ngram == most])


def test_a_refrain_is_marked_as_repeated_lines_only():
    refrain = "der Wind geht über das weite Land und singt"
    text = f"{refrain}\nein Lied\n{refrain}\nein Haus\nund der Wind geht über das weite Land und ruht"
    for marker, n_marked in ((Marker(), 2), (Marker(refrains=True), 1)):
        marked = counted_places("max_dup_ngram_frac_7", text, marker)
        assert [text[slice(*span)] for span in marked][-1] == "der Wind geht über das weite Land und"
        assert len(marked) == n_marked


def test_a_blank_text_and_a_rule_without_places_have_none():
    assert counted_places("empty", " \n") == counted_places("max_bad_chars_frac", "") == []
    assert counted_places("near_duplicate", "a a") == counted_places("max_signal_x_5", "a a") == []


def test_paragraphs_of_another_language():
    german = (
        "Der alte Hafen der Stadt war im Winter leer. " + "Die Boote lagen unter dem Schnee der Nacht. " * 2
    )
    english = "The old harbour was empty in winter. " + "The boats lay quietly under the snow of night. " * 2
    text = "\n\n".join([german, f"  {english} ", german, english[:36], english[36:] + "\r", german])
    identifier = LanguageIdentifier(["de"])
    marker = Marker(identifier=identifier)
    spans = counted_places("min_language_frac", text, marker)
    assert [text[slice(*span)].split() for span in spans] == [english.split()] * 2
    assert identifier.share(text) == pytest.approx(
        3 * len(german) / (3 * len(german) + 2 * len(english)), 0.01
    )
    assert counted_places("min_language_score", text, marker) == spans
    assert counted_places("min_language_score", "a" * 2000 + text, marker)[-1][1] <= 2000
    assert counted_places("min_language_score", "\n" * 2000 + text, marker)
    assert counted_places("min_language_score", text, marker, language_score=0.5) == []
    assert marker.legend("min_language_frac")


def sequences(words):
    return {tuple(words[number : number + 5]) for number in range(len(words) - 4)}


@given(*[st.lists(st.sampled_from(["Aal", "bär", "17", "3.000,5", "Öl", "–", "x/y"]), max_size=40)] * 2)
def test_what_two_texts_have_in_common(one, other):
    """Each is two words, one, or none to minhash.py, which reads numbers as equal."""
    readings = {"17": ["0"], "3.000,5": ["0"], "–": [], "x/y": ["x", "y"]}
    words = [
        [(place, part) for place, word in enumerate(text) for part in readings.get(word, [word])]
        for text in (one, other)
    ]
    common = set.intersection(*(sequences([word for _, word in each]) for each in words))
    for text, of_text, spans in zip(
        (one, other), words, Marker().alike(" ".join(one), " ".join(other)), strict=True
    ):
        starts = [
            n for n in range(len(of_text) - 4) if tuple(word for _, word in of_text[n : n + 5]) in common
        ]
        expected = {of_text[n + k][0] for n in starts for k in range(5)}
        shown = " ".join(text)
        found = {
            shown[:start].count(" ") + k
            for start, end in spans
            for k in range(shown[start:end].count(" ") + 1)
        }
        assert found == expected
