"""Special tokens of an extended tokenizer, which plain text must not reach.

They are part of the model's vocabulary, since else their ids would change. There the library finds a string
that is a single character or, with `ignore_merges`, a whole word.
"""

from collections.abc import Iterator
from itertools import islice

from tokenizers import pre_tokenizers

from data_prep.tokenizing.continued_bpe import BYTE, Base
from data_prep.tokenizing.reachable import letters_of, texts_of
from lit_gpt.errors import InputError
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer

_TRIED = 100  # texts of a special token


def new_special_tokens(base: Base, names: list[str], taken: set[str]) -> list[str]:
    """The names that are no added tokens of the base.

    Raises:
        InputError: one of them is taken by an ordinary token.
    """
    new = [name for name in dict.fromkeys(names) if name not in base.added]
    byte_fallback = base.definition["model"].get("byte_fallback")
    for name in new:
        if byte_fallback and BYTE.fullmatch(name):
            raise InputError(f"--special_tokens: {name!r} stands for a byte; give another name")
        spelled = letters_of(name) if base.byte_level else name.replace(" ", base.space)
        if not name or name in taken or spelled in taken:
            raise InputError(f"--special_tokens: {name!r} is an ordinary token; give another name")
    return new


def check_special_tokens(base: Base, extended: Tokenizer, extension: Extension) -> None:
    """Check that the strings of all special tokens, as plain text, are encoded as by the base.

    Raises:
        InputError: one of them is not.
    """
    for name in [*base.added, *extension.special_tokens]:
        for text in _plain_texts(name, base.byte_level):
            old, new = (one.encode([text])[0][1:-1].tolist() for one in (base.tokenizer, extended))
            if extension.to_base(new) != old:
                said = f"the text {text!r} would be encoded as the special token {name!r}"
                if name in extension.special_tokens:
                    raise InputError(f"--special_tokens: {said}; give another name")
                raise InputError(
                    f"{base.tokenizer.folder} cannot be extended: {said}; train one by train_tokenizer.py"
                )


def _plain_texts(name: str, byte_level: bool) -> Iterator[str]:
    """The string itself, and texts of which it is the spelling."""
    yield name
    if name and (not byte_level or set(name) <= set(pre_tokenizers.ByteLevel.alphabet())):
        yield from islice(texts_of(name, byte_level), _TRIED)
