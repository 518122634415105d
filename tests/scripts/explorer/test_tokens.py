"""Tokens as text against the tokenizer."""

import numpy as np

from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from scripts.explorer.tokens import PART, part_of, pieces, token_texts
from tests.masked_stores import conversations, masked_store


def test_the_texts_of_tokens_are_the_text(tokenizer_dir):
    tokenizer = Tokenizer.load(tokenizer_dir)
    text = "Straße 日本 ❤ 🙂\r\n\tGrüße \ufffd ñandú"
    ids = tokenizer.encode([text])[0]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert texts[0].startswith("⟨")
    assert texts[-1].startswith("⟨")
    assert "".join(texts[1:-1]) == tokenizer.decode(ids) == text
    assert "🙂" in texts


def test_targets_are_told_from_what_is_only_read(tmp_path, tokenizer_dir):
    talk = [("Wie geht es?\n", False), ("Gut, danke.\n", True)]
    store = TokenStore.open(masked_store(tmp_path / "chat", tokenizer_dir, [talk, *conversations(3)]))
    first, second = pieces(store, store.document_tokens(0, 0))
    assert (first.text.endswith("Wie geht es?\n"), first.is_target) == (True, False)
    assert (second.text.startswith("Gut, danke.\n"), second.is_target) == (True, True)


def test_a_long_document_comes_in_parts():
    tokens = np.arange(2 * PART + 5)
    parts = [part_of(tokens, number) for number in (0, 1, 2, 3, 99)]
    assert [(part[0], part.size, count) for part, count in parts] == [
        (0, PART, 3),
        (0, PART, 3),
        (PART, PART, 3),
        (2 * PART, 5, 3),
        (2 * PART, 5, 3),
    ]
    assert part_of(np.arange(0), 1)[1] == 1
