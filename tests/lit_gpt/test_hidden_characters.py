"""What must be named where foreign text is shown."""

import pytest

from lit_gpt.hidden_characters import is_hidden


@pytest.mark.parametrize(
    "character", "\0\a\r\x85\u00ad\u200b\u200f\u202e\u2028\u2062\u2066\ue000\ufeff\ufffe\U000e0041"
)
def test_what_is_not_seen_is_hidden(character):
    assert is_hidden(character)


@pytest.mark.parametrize("character", "a ß\n\t中א\u0301\u200c\u200d\ufe0f🚀\u00a0")
def test_what_is_seen_or_needed_is_not(character):
    assert not is_hidden(character)
