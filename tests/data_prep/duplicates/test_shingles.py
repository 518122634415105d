"""Shingles by arrays are the word n-grams of plain Python; keys agree as often as the formula says."""

import itertools
import random
import unicodedata
from unittest import mock

import numpy as np
import pytest
import regex

from data_prep.duplicates import shingles
from data_prep.duplicates.shingles import Signer
from tests.german import german_texts

WORDS = 3


def n_grams(text):
    """The set of n-grams by regular expressions, one rule after the other."""
    text = regex.sub(r"\p{Cf}|\p{Mn}", "", unicodedata.normalize("NFD", text.lower()))
    text = regex.sub(r"\p{Nd}+([.,]\p{Nd}+)*", "0", text)
    found = regex.sub(r"[\p{P}\p{Z}\p{S}\p{C}]", " ", text).split()
    return {tuple(found[i : i + WORDS]) for i in range(len(found) - WORDS + 1)}


def sets(texts):
    signed = Signer(WORDS, 2, 2).sign(texts)
    return [set(part.tolist()) for part in np.split(signed.shingles, np.cumsum(signed.sizes)[:-1])]


def strange_texts():
    rng = random.Random(3)
    alphabet = "aAbäÄßẞıİée\u0301\u00ad\u200b \n\t\u00a0.,;!-–€→0123٣½漢字한글\U0001d51f\U0001f600"
    return ["".join(rng.choices(alphabet, k=rng.randrange(120))) for _ in range(150)]


@pytest.mark.parametrize("batch", [1 << 18, 70])
def test_shingles_are_the_word_n_grams(batch):
    texts = ["", "eins", "eins zwei drei", *german_texts(60, seed=2), *strange_texts()]
    texts += ["1.000,50 Euro am 3.4.2024", "Ähre\u00ad und a\u0308hre", "ÄHRE, und ähre!"]
    if batch == 70:  # a text longer than a batch is cut at a space, which cuts no word
        texts = [text.replace("\n", " ") for text in german_texts(60, seed=2)]
    with mock.patch.object(shingles, "BATCH", batch):
        found = sets(texts)
    expected = [n_grams(text) for text in texts]
    assert [len(each) for each in found] == [len(each) for each in expected]
    for one, other in itertools.combinations(range(len(texts)), 2):
        assert len(found[one] & found[other]) == len(expected[one] & expected[other])
    if batch != 70:
        assert found[-1] == found[-2]


def test_a_text_is_signed_alike_in_any_batch():
    texts = ["", *german_texts(30, seed=4), "zu kurz"]
    signer = Signer(5, 14, 8)
    together = signer.sign(texts)
    for number, text in enumerate(texts):
        alone = signer.sign([text])
        start = together.sizes[:number].sum()
        assert np.array_equal(alone.shingles, together.shingles[start : start + together.sizes[number]])
        assert np.array_equal(alone.keys[0], together.keys[number])
        assert alone.set_hashes[0] == together.set_hashes[number]


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
def test_keys_agree_as_often_as_the_formula_says(similarity):
    rng = np.random.default_rng(5)
    n_pairs, n_both = 4000, 60
    n_own = round(n_both * (1 - similarity) / similarity / 2)
    drawn = rng.integers(0, 1 << 32, (n_pairs, n_both + 2 * n_own), dtype=np.uint32)
    one, other = drawn[:, : n_both + n_own], np.delete(drawn, np.s_[n_both : n_both + n_own], axis=1)
    sizes = np.full(n_pairs, n_both + n_own)
    keys = [
        Signer(5, 14, 8).sign_sets(np.ascontiguousarray(each).ravel(), sizes).keys for each in (one, other)
    ]
    share = (keys[0] == keys[1]).any(axis=1).mean()
    expected = 1 - (1 - (n_both / (n_both + 2 * n_own)) ** 8) ** 14
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n_pairs)
