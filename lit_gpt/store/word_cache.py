"""Cache of encoded words: the same ids as plain encoding, several times as fast.

A text is cut only where the tokenizer never merges across the cut. That is proved from the tokenizer's
definition; where it cannot be proved there is no cache.
"""

import re
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers

# The pre-tokenizer that data_prep/train_tokenizer.py makes (and Llama 3's): words with what stands before
# them, digits by three, marks with the line ends after them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
# Nothing that WORDS matches continues from a non-space to a space, nor beyond the last line end of a run of
# space. (\x1c-\x1f are space for Python, but not for the tokenizers library.)
_CUT_BYTE_LEVEL = r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+(?:[^\S\x1c-\x1f]*[\r\n])?|[^\S\x1c-\x1f]+"
_SPACE_AS_LETTER = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
_CHANGES_WORDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_GENERATION = 1 << 18  # words; two generations are about 100 MB
_LONGEST = 64  # characters; longer words rarely repeat


class WordCache(dict[str, bytes]):
    """Word -> its ids as bytes. A full generation becomes the previous one, so frequent words stay."""

    def __init__(self, cut: str, encode: Callable[[str], list[int]], dtype: np.dtype) -> None:
        """Make an empty cache.

        Args:
            cut: pattern of a word; every text is a row of its matches.
            encode: ids of a word.
            dtype: of the ids.
        """
        super().__init__()
        self.cut: Callable[[str], list[str]] = re.compile(cut).findall
        self._encode = encode
        self._typecode = dtype.char
        self._previous: dict[str, bytes] = {}

    def encode(self, text: str) -> bytes:
        """The ids of a text, in the dtype's bytes."""
        return b"".join(map(self.__getitem__, self.cut(text)))

    def __missing__(self, word: str) -> bytes:
        ids = self._previous.get(word)
        if ids is None:
            ids = array(self._typecode, self._encode(word)).tobytes()
        if len(word) <= _LONGEST:
            if len(self) >= _GENERATION:
                self._previous = dict(self)
                self.clear()
            self[word] = ids
        return ids


def word_cache(
    definition: dict[str, Any], backend: tokenizers.Tokenizer, dtype: np.dtype
) -> WordCache | None:
    """A cache for a tokenizer, or None where no safe place to cut is known.

    Args:
        definition: the tokenizer's JSON.
        backend: the tokenizer made of it, special strings encoded as plain text.
        dtype: of the ids, uint16 or int32.
    """
    model, added = definition["model"], definition.get("added_tokens") or []
    plain_bpe = model.get("type") == "BPE" and not any(model.get(name) for name in _CHANGES_WORDS)
    if not plain_bpe or definition.get("normalizer"):
        return None
    if definition.get("pre_tokenizer") == _BYTE_LEVEL and all(token["special"] for token in added):

        def encode(word: str) -> list[int]:
            return backend.encode(word, add_special_tokens=False).ids

        return WordCache(_CUT_BYTE_LEVEL, encode, dtype)
    if definition.get("pre_tokenizer") in (_SPACE_AS_LETTER, None) and _are_single(added):
        space = "▁" if definition.get("pre_tokenizer") else " "
        characters = {token["content"]: token["id"] for token in added if not token["special"]}
        return _cache_of_lines(model, backend.model, space, characters, dtype)
    return None


def _cache_of_lines(
    model: dict[str, Any],
    bpe: tokenizers.models.Model,
    space: str,
    added: dict[str, int],
    dtype: np.dtype,
) -> WordCache | None:
    """For a model that is given complete texts, a space as `space`, and cuts them by its merges alone."""
    merged = ["".join(merge) for merge in model["merges"] if isinstance(merge, list)]
    joins = len(merged) < len(model["merges"]) or any(
        re.search(f"[^{space}]{space}", token) for token in merged
    )
    if joins or space not in model["vocab"] or model.get("ignore_merges"):
        return None  # something may go from a word into the next, if only unknown characters that are fused

    def encode(word: str) -> list[int]:
        if word in added:
            return [added[word]]
        return [token.id for token in bpe.tokenize(word.replace(" ", space))]

    one_added = "".join(map(re.escape, added))
    cut = f"[ {space}]*[^ {space}{one_added}]+|[ {space}]+" + (f"|[{one_added}]" if added else "")
    return WordCache(cut, encode, dtype)


def _are_single(added: list[dict[str, Any]]) -> bool:
    """Added tokens are single characters that are found wherever they stand."""
    plain = [token for token in added if not token["special"]]
    bound = any(token[name] for token in plain for name in ("lstrip", "rstrip", "single_word"))
    # A special token's string is skipped as one, with anything found in the same pass.
    hidden = any(token["normalized"] == token["special"] for token in added)
    return all(len(token["content"]) == 1 for token in plain) and not bound and not hidden
