"""How many bytes of text each token stands for: dividing a loss by bytes makes tokenizers comparable.

Read from the tokens' strings: in GPT-2's byte alphabet a character is a byte; elsewhere `▁` may be a space
and `<0xNN>` a byte. The result is checked on a few texts, so that other rules cannot falsify it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from lit_gpt.store.tokenizer import Tokenizer, read_definition

# NFC, NFKC and lower case leave these as they are.
_PROBES = ("a", "grüß  dich,\n\n\tich habe 12345!", "i'm (x_1) != {a: [b]}", "日本 ❤ 🙂\r\n")
_ALPHABET = frozenset(ByteLevel.alphabet())
_FALLBACK_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenBytes(NamedTuple):
    """Bytes of text by token id: `sizes` and `prefix`, int64 (vocab_size,) each.

    `prefix` is 1 for ids that begin with the space that the tokenizer puts before a text. It is to be taken
    off where the id follows one of `before_text`: BOS, and those of a chat template's tokens after which the
    tokenizer begins anew. `notes` say what the count does not see.
    """

    sizes: np.ndarray
    prefix: np.ndarray
    before_text: list[int]
    notes: list[str]

    def of_labels(self, inputs: np.ndarray, labels: np.ndarray) -> int:
        """Bytes of labels, integers of one shape each; negative labels are masked and count nothing."""
        targets = labels >= 0
        labels, begins = labels[targets], np.isin(inputs[targets], self.before_text)  # no text gives these
        return int(self.sizes[labels].sum() - self.prefix[labels[begins]].sum())


def count_token_bytes(folder: Path | str) -> TokenBytes:
    """Bytes of every token of the tokenizer in `folder`; special tokens have none.

    Raises:
        InputError: the folder holds no tokenizer.
        ValueError: tokens do not say their bytes; the message says why.
    """
    tokenizer = Tokenizer.load(folder, cache_words=False)
    definition, _ = read_definition(Path(folder))
    model, added = definition["model"], definition.get("added_tokens") or []
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("the tokenizer is not a BPE whose tokens are plain pieces of text")
    normalizers = list(_rules(definition.get("normalizer")))
    rules = [*normalizers, *_rules(definition.get("pre_tokenizer"))]
    byte_level = any(rule["type"] == "ByteLevel" for rule in rules)
    space = "Ġ" if byte_level else "▁" if any("▁" in rule.values() for rule in rules) else " "
    tokens = [tokenizer.token(number) or "" for number in range(tokenizer.vocab_size)]
    sizes = np.array([_size(token, byte_level, space, model) for token in tokens], dtype=np.int64)
    no_text = {token["id"] for token in added if token["special"]} | {tokenizer.bos_id, tokenizer.eos_id}
    sizes[[*no_text, *([] if tokenizer.unk_id is None else [tokenizer.unk_id])]] = 0
    begins = np.array([token.startswith(space) for token in tokens]) & (sizes > 0)
    plain, spaced = tokenizer.encode(["a", " a"])

    notes = []
    alphabet = _ALPHABET if byte_level else {f"<0x{byte:02X}>" for byte in range(256)}
    if not (byte_level or model.get("byte_fallback")) or not alphabet.issubset(tokens):
        notes.append("characters that the tokenizer does not know count as 0 bytes")
    if np.array_equal(plain, spaced):
        notes.append("a space at a document's beginning is not seen")
    if changes := [rule["type"] for rule in normalizers if not {"▁", "ByteLevel"} & _texts(rule)]:
        notes.append(f"bytes are those of the text as normalised ({', '.join(changes)})")
    prefix = (begins & begins[plain[1]]).astype(np.int64)
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    before_text = [tokenizer.bos_id]
    for token in added if prefix.any() else ():
        first, *rest = backend.encode(f"{token['content']}a", add_special_tokens=False).ids
        if token["special"] and first == token["id"] and prefix[rest[:1]].any():
            before_text.append(first)
    token_bytes = TokenBytes(sizes, prefix, before_text, notes)
    _check(tokenizer, token_bytes, [token["content"] for token in added if not token["special"]])
    return token_bytes


def _rules(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The normalizers or pre-tokenizers of a sequence, or the one that there is."""
    for inner in (part or {}).get("normalizers", (part or {}).get("pretokenizers", [])):
        yield from _rules(inner)
    if part is not None and part["type"] != "Sequence":
        yield part


def _texts(rule: dict[str, Any]) -> set[str]:
    return {value for value in rule.values() if isinstance(value, str)}


def _size(token: str, byte_level: bool, space: str, model: dict[str, Any]) -> int:
    if byte_level and _ALPHABET.issuperset(token):
        return len(token)
    if model.get("byte_fallback") and _FALLBACK_BYTE.fullmatch(token):
        return 1
    return len((token if byte_level else token.replace(space, " ")).encode())


def _check(tokenizer: Tokenizer, token_bytes: TokenBytes, added: list[str]) -> None:
    """Compare with the bytes of texts, as far as the tokenizer knows their characters.

    Raises:
        ValueError: they differ.
    """

    def known(character: str) -> bool:
        return tokenizer.unk_id not in tokenizer.encode([character])[0]

    for probe in (*_PROBES, "a".join(["", *added, ""])):
        text = "".join(filter(known, probe))
        ids = tokenizer.encode([text])[0]
        if token_bytes.of_labels(ids[:-1], ids[1:]) != len(text.encode()):
            raise ValueError(f"the tokenizer's rules change the length of texts, such as {text!r}")
