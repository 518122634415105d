"""Find a text whose encoding has a token: a token that no text gives has a row that is never trained."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product

from tokenizers import pre_tokenizers

from data_prep.tokenizing.continued_bpe import SPACES
from lit_gpt.store.tokenizer import Tokenizer

_TRIED = 5000  # ways to complete a token's first and last character
_LAST = 0x20000  # characters tried: the Basic Multilingual Plane, and the one with emoji


def find_text(content: str, tokenizer: Tokenizer, byte_level: bool) -> str | None:
    """A text whose encoding has the token, None if none is found.

    The token's own text is one wherever it is a text and no space is put before it. Half a character is
    completed by another half with which no longer token is made.

    Args:
        content: of the token, as in the vocabulary.
        byte_level: whether its characters stand for bytes.
    """
    token_id = tokenizer.id_of(content)
    for text in islice(texts_of(content, byte_level), _TRIED):
        if token_id in tokenizer.encode([text])[0][1:-1]:
            return text
    return None


def texts_of(content: str, byte_level: bool) -> Iterator[str]:
    """Texts that may be encoded to the token of this content."""
    if byte_level:
        plain = _completed(bytes(_bytes_of_letters()[letter] for letter in content))
    else:
        plain = iter([content.replace(SPACES[0], " ")])
    for text in plain:
        yield text
        yield "\n" + text  # a space may be put before a text
        if text[0] == " ":
            yield text[1:]


def _completed(data: bytes) -> Iterator[str]:
    """The texts of bytes that begin or end inside a character."""
    try:
        yield data.decode()
        return
    except UnicodeDecodeError:
        pass
    n_head = next((n for n, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
    n_tail = next((n for n, byte in enumerate(reversed(data), 1) if byte & 0xC0 != 0x80), 0)
    tail = data[len(data) - n_tail :] if n_tail else b""
    before, after = _halves()
    for begin, end in product(before.get(data[:n_head], [b""]), after.get(tail, [b""])):
        with suppress(UnicodeDecodeError):
            yield (begin + data + end).decode()


@functools.cache
def _halves() -> tuple[dict[bytes, list[bytes]], dict[bytes, list[bytes]]]:
    """What stands before the end of a character's bytes, and after their beginning."""
    before, after = defaultdict(list), defaultdict(list)
    for number in (*range(0x80, 0xD800), *range(0xE000, _LAST)):
        data = chr(number).encode()
        for cut in range(1, len(data)):
            before[data[cut:]].append(data[:cut])
            after[data[:cut]].append(data[cut:])
    return before, after


def letters_of(text: str) -> str:
    """A text as the tokens of a byte-level tokenizer spell it."""
    letters = {byte: letter for letter, byte in _bytes_of_letters().items()}
    return "".join(letters[byte] for byte in text.encode())


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level tokenizer stands for.

    As in GPT-2: printable bytes of Latin-1 stand for themselves, the others follow from 256 on, in order.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    others = [byte for byte in range(256) if chr(byte) not in letters]
    return {letter: ord(letter) if ord(letter) < 256 else others[ord(letter) - 256] for letter in letters}
