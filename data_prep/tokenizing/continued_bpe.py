"""Continue a BPE tokenizer's training on new text: new merges after the old ones, old ids untouched.

Each old id is spelled as one character, and the library's trainer learns merges on words spelled so. Old
merges outrank new ones, so a text is first encoded as before, and then old ids are joined: replacing each new
token by its old ids gives the base's encoding.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from lit_gpt.cli import InputError, progress
from lit_gpt.store.tokenizer import Tokenizer, read_definition

SPACES = "▁ "
"""What stands for a space in the tokens of a tokenizer that is not byte-level."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token for a byte, where the model has `byte_fallback`."""
_FIRST = 0x10000  # above the surrogates and all white space
_MAX_IDS = 0x110000 - _FIRST
_BLOCK = 1 << 24  # characters whose parts are counted before they are encoded
_BATCH = 64  # texts that the library encodes at a time
_MAX_WORDS = 4 << 20  # about 600 MB
_FED = 1000  # words given to the trainer at a time
_MIN_COUNT = 2
# Kind of a token's last character -> kinds of a next token's first that a new token may join it with.
_JOINED = {" ": " LO", "L": "L", "O": "O"}


class NewToken(NamedTuple):
    """A token that the base lacks."""

    left: str
    right: str
    """The two tokens that it is merged of, as the vocabulary has them."""
    old_ids: list[int]
    """The base's encoding of it."""

    @property
    def content(self) -> str:
        return self.left + self.right


class Base:
    """The tokenizer to be continued."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: its merges cannot be continued.
        """
        self.definition, self.config = read_definition(folder)
        model = self.definition.get("model") or {}
        if reason := _why_not(model):
            raise InputError(f"{folder} cannot be extended: {reason}; train one by train_tokenizer.py")
        self.tokenizer = Tokenizer.load(folder)
        self.byte_level = '"ByteLevel"' in json.dumps(self.definition.get("pre_tokenizer"))
        added_tokens = self.definition.get("added_tokens") or []
        self.added: dict[str, bool] = {token["content"]: token["special"] for token in added_tokens}
        """The added tokens' contents, and whether each is special."""
        self.taken = {*model["vocab"], *self.added}
        """All tokens' contents."""
        self.contents = {
            token: content
            for content, token in model["vocab"].items()
            if content and content not in self.added and content != model.get("unk_token")
            if not (model.get("byte_fallback") and BYTE.fullmatch(content))
        }
        """Tokens that stand for text of their own."""
        marked = any(content[0] == SPACES[0] for content in self.contents.values())
        self.space = "Ġ" if self.byte_level else SPACES[not marked]
        """How tokens spell a space."""
        self._edges = {
            token: ("L", "L") if self.byte_level else _edges(content)
            for token, content in self.contents.items()
        }

    def spelled(self, ids: Iterable[int]) -> Iterator[str]:
        """Cut a word of the pre-tokenizer where new tokens end, and spell each id as a character.

        Unknown and byte tokens are left out. A byte-level tokenizer's words are cut by its pre-tokenizer.
        Others are cut as SentencePiece does: before spaces, between letters and marks, and around each digit.
        """
        word, end = "", ""
        for token in ids:
            start, next_end = self._edges.get(token, ("", ""))
            if not start or start not in _JOINED.get(end, ""):
                yield word
                word = ""
            word += chr(_FIRST + token) if start else ""
            end = next_end
        yield word


def merges_of(definition: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, in their order; files of older libraries have them as one string."""
    merges = definition["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _why_not(model: dict[str, Any]) -> str:
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, not BPE"
    if not (model.get("vocab") and isinstance(model["vocab"], dict)):
        return "its tokenizer.json has no vocab"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            return f"its model has {name}"
    return f"it has more than {_MAX_IDS:,} ids" if max(model["vocab"].values()) >= _MAX_IDS else ""


def _edges(content: str) -> tuple[str, str]:
    """Kinds of the first and the last character; a space with text after it joins with nothing before."""
    start = "word" if content[0] in SPACES and content.strip(SPACES) else _kind(content[0])
    return start, _kind(content[-1])


def _kind(character: str) -> str:
    """` `, `L`etter (with its accents), `N`umber or `O`ther."""
    category = unicodedata.category(character)[0]
    return " " if character in SPACES else {"L": "L", "M": "L", "N": "N"}.get(category, "O")


def count_words(texts: Iterable[str], base: Base) -> tuple[Counter[str], int]:
    """Count spelled words of more than one token.

    Memory is bounded: where there are too many different words, the rarest are forgotten. Also returned is
    the highest count at which words were; 0 if none were.
    """
    words: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    size = forgotten = 0
    for text in texts:
        parts.update(base.tokenizer.cut(text))
        size += len(text)
        if size > _BLOCK:
            _add_words(words, parts, base)
            forgotten = max(forgotten, _forget(words))
            parts, size = Counter(), 0
    _add_words(words, parts, base)
    return words, max(forgotten, _forget(words))


def _add_words(words: Counter[str], parts: Counter[str], base: Base) -> None:
    different = list(parts)
    for begin in range(0, len(different), _BATCH):
        batch = different[begin : begin + _BATCH]
        for part, encoded in zip(batch, base.tokenizer.encode_words(batch), strict=True):
            for ids in encoded:
                for word in base.spelled(ids):
                    if len(word) > 1:
                        words[word] += parts[part]


def _forget(words: Counter[str]) -> int:
    """Forget the rarest words until the others fit; the highest count of a forgotten one."""
    n_left, limit = len(words), 0
    for count, n_words in sorted(Counter(words.values()).items()):
        if n_left <= _MAX_WORDS:
            break
        n_left, limit = n_left - n_words, count
    for word in [word for word, count in words.items() if count <= limit]:
        del words[word]
    return limit


def learn(words: Counter[str], n_merges: int, base: Base) -> tuple[list[NewToken], bool]:
    """The new tokens of up to `n_merges` merges, and whether the words give no more merges.

    A merge whose string is a token already is dropped, and what builds on it: two encodings of one string
    cannot share a token.
    """
    possible = sum(len(word) - 1 for word in words)  # each merge makes a word shorter
    merges = _merges(words, min(n_merges, possible)) if words else []
    known = {chr(_FIRST + token): content for token, content in base.contents.items()}
    taken, learned = set(base.taken), []
    for left, right in merges:
        if left in known and right in known:
            token = NewToken(known[left], known[right], [ord(one) - _FIRST for one in left + right])
            if token.content not in taken:
                taken.add(token.content)
                known[left + right] = token.content
                learned.append(token)
    return learned, len(merges) < n_merges or n_merges >= possible


def _merges(words: Counter[str], n_merges: int) -> list[tuple[str, str]]:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = len(set().union(*words))
    trainer = trainers.BpeTrainer(
        vocab_size=alphabet + n_merges, min_frequency=_MIN_COUNT, show_progress=False
    )
    backend.train_from_iterator(_repeated(words), trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it occurs: the trainer takes no counts."""
    for word, count in progress(words.items(), description="learn", unit=" words"):
        for begin in range(0, count, _FED):
            yield " ".join([word] * min(_FED, count - begin))


def without(tokens: Iterable[NewToken], dropped: set[str]) -> list[NewToken]:
    """The tokens but for those of these contents and all that are merged of them."""
    kept, gone = [], set(dropped)
    for token in tokens:
        if gone.isdisjoint((token.left, token.right, token.content)):
            kept.append(token)
        else:
            gone.add(token.content)
    return kept
