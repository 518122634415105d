"""A tokenizer folder as the project uses it: text to ids and back, with the ids of the released models.

The `tokenizers` library is used directly: what `AutoTokenizer` makes of a folder changes between versions of
transformers, and a corpus is tokenized once.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lit_gpt.cli import InputError
from lit_gpt.files import read_json
from lit_gpt.store.word_cache import word_cache

REQUIRED_FILES = ("tokenizer.json", "tokenizer_config.json")
FILES = (
    *REQUIRED_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",  # for the tokens that end a text or a turn
)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that belong to a tokenizer, whether or not it is one that we read."""
    return [path for name in FILES if (path := folder / name).is_file()]


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest of the two dtypes of a store that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


def begin_with_bos(backend: tokenizers.Tokenizer, bos: str) -> None:
    """Let `AutoTokenizer` put BOS before a text unless told otherwise: every document of training has it."""
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, backend.token_to_id(bos))],
    )


def for_transformers(config: dict[str, Any], **fixed: Any) -> dict[str, Any]:
    """`tokenizer_config.json` as every version of transformers reads it, for a model that continues texts.

    Args:
        config: names `eos_token`; its own `pad_token` and `padding_side` stay.
        fixed: keys that win.
    """
    dropped = {"legacy"}
    if config.get("add_prefix_space") is not False:  # false is in the definition, but llama.cpp asks here
        dropped.add("add_prefix_space")
    defaults = {
        # EOS, as `generate` chooses: masks derived from BOS would hide a prompt's first token, and the
        # unknown token may be part of a text.
        "pad_token": config["eos_token"],
        "padding_side": "left",  # a continuation follows the prompt, not its padding
        "clean_up_tokenization_spaces": False,
    }
    return {
        **defaults,
        **{name: value for name, value in config.items() if name not in dropped},
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Without it transformers 4 adds token_type_ids, which `generate` refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        **fixed,
    }


def prefix_space(definition: dict[str, Any]) -> dict[str, bool]:
    """The key for a byte-level tokenizer.json with a prefix space: transformers 4 takes it off without."""
    step = definition.get("pre_tokenizer") or {}
    has_one = step.get("type") == "ByteLevel" and step.get("add_prefix_space", False)
    return {"add_prefix_space": True} if has_one else {}


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers puts BOS before a text unless told otherwise."""
    return tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]


class Tokenizer:
    """Text to `BOS + ids + EOS` and back. Strings that look like special tokens are plain text."""

    def __init__(
        self, folder: Path, definition: dict[str, Any], special: dict[str, str | None], cache_words: bool
    ) -> None:
        self.folder = folder
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = token_dtype(self.vocab_size)
        self._words = word_cache(definition, self._backend, self.dtype) if cache_words else None
        self.bos_id = self._special_id(special, "bos_token")
        self.eos_id = self._special_id(special, "eos_token")
        self.unk_id: int | None = None
        if special["unk_token"] is not None:
            self.unk_id = self._special_id(special, "unk_token")
        # A pad token outside the vocabulary would be an id that the model has no row for.
        pad_id = self._backend.token_to_id(special["pad_token"] or "")
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        defining = [definition, self.bos_id, self.eos_id]
        self.fingerprint = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path | str, cache_words: bool = True) -> "Tokenizer":
        """Read `tokenizer.json`, and from `tokenizer_config.json` what changes its ids.

        Args:
            folder: as `AutoTokenizer` reads it.
            cache_words: encode through a cache, which changes nothing but the speed.

        Raises:
            InputError: a file is missing or unreadable, or no BOS or EOS token is named.
        """
        folder = Path(folder)
        definition, config = read_definition(folder)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: _content(config.get(name)) for name in names}
        try:
            return cls(folder, {key: definition.get(key) for key in _DEFINING}, special, cache_words)
        except InputError:
            raise
        except Exception as error:  # the library raises a bare Exception for anything it cannot read
            raise InputError(f"{folder / 'tokenizer.json'} does not load: {str(error)[:200]}") from error

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array (n_tokens,) of `dtype` a text: BOS, the text's ids, EOS."""
        bos, eos = (np.array([token], self.dtype).tobytes() for token in (self.bos_id, self.eos_id))
        return [np.frombuffer(b"".join((bos, ids, eos)), self.dtype) for ids in map(self._encode, texts)]

    def cut(self, text: str) -> list[str]:
        """Parts of a text that are encoded independently of each other; the text if no safe cut is known."""
        return [text] if self._words is None else self._words.cut(text)

    def encode_words(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """The ids of each text without BOS and EOS, one list for each word of the pre-tokenizer."""
        for encoding in self._backend.encode_batch(texts, add_special_tokens=False):
            words = groupby(zip(encoding.word_ids, encoding.ids, strict=True), key=itemgetter(0))
            yield [[token for _, token in word] for _, word in words]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; special tokens are left out."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)

    def files(self) -> list[Path]:
        """The files of the folder that belong to the tokenizer."""
        return files_in(self.folder)

    def write_for_transformers(self, folder: Path, max_length: int, bos: bool | None) -> None:
        """Copy the files so that `AutoTokenizer` of any version gives these ids.

        `tokenizer.json` as it is used here, and the class that takes it at its word: others add rules of
        their own, which differ between versions.

        Args:
            folder: is there.
            max_length: the model's longest sequence in tokens, to which transformers truncates when asked.
            bos: whether BOS, and nothing else, is added to a text by default; None: as in the files.
        """
        for path in self.files():
            shutil.copyfile(path, folder / path.name)
        definition, config = read_definition(self.folder)
        fixed = {"pad_token": self.token(self.pad_id), "model_max_length": max_length}
        config = for_transformers(config, **fixed, **prefix_space(definition))
        if bos is not None:
            self._frame_texts(definition, config, bos)
        # Megabytes, which indenting would make several times slower to write and no easier to read.
        (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
        text = json.dumps(config, ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def _frame_texts(self, definition: dict[str, Any], config: dict[str, Any], bos: bool) -> None:
        """Transformers 4 follows the post-processor; transformers 5 and llama.cpp the keys."""
        config |= {"add_bos_token": bos, "add_eos_token": False}
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        plain = backend.encode("a", add_special_tokens=False).ids
        if backend.encode("a").ids == [self.bos_id] * bos + plain:
            return  # as it is, with the fingerprint that it has
        if bos:
            begin_with_bos(backend, self.token(self.bos_id) or "")
            definition["post_processor"] = json.loads(backend.to_str())["post_processor"]
        else:
            definition["post_processor"] = None

    def token(self, token_id: int) -> str | None:
        """The vocabulary's entry for an id, None for an id without one."""
        return self._backend.id_to_token(token_id)

    def id_of(self, token: str) -> int | None:
        """The id of a vocabulary's entry, None if there is no such entry."""
        return self._backend.token_to_id(token)

    def _encode(self, text: str) -> bytes:
        if self._words is not None:
            return self._words.encode(text)
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, self.dtype).tobytes()

    def _special_id(self, special: dict[str, str | None], name: str) -> int:
        token = special[name]
        token_id = None if token is None else self._backend.token_to_id(token)
        if token_id is None:
            raise InputError(
                f"{self.folder}: tokenizer_config.json names no {name} that is in the vocabulary; add it"
            )
        return token_id


_DEFINING = ("version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers encode alike: post-processor and decoder may differ."""
    definitions = [read_definition(tokenizer.folder)[0] for tokenizer in (one, other)]
    deciding = [name for name in _DEFINING if name not in ("post_processor", "decoder")]
    return (one.bos_id, one.eos_id) == (other.bos_id, other.eos_id) and all(
        definitions[0].get(name) == definitions[1].get(name) for name in deciding
    )


def read_definition(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json as it is to be used, and tokenizer_config.json."""
    hint = "give a folder with tokenizer.json and tokenizer_config.json"
    definition = read_json(folder / "tokenizer.json", hint)
    config = read_json(folder / "tokenizer_config.json", hint)
    if config.get("add_prefix_space") is False:
        _forbid_prefix_space(definition)
    return definition, config


def _forbid_prefix_space(definition: dict[str, Any]) -> None:
    """`add_prefix_space: false` overrules `tokenizer.json`, as where the released ids were made."""
    pre_tokenizer = definition.get("pre_tokenizer") or {}
    for part in (pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    decoder = definition.get("decoder") or {}
    if "decoders" in decoder:  # no space was put before the text, so none is to be taken away
        decoder["decoders"] = [part for part in decoder["decoders"] if part.get("type") != "Strip"]


def _content(token: Any) -> str | None:
    """A special token is given as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
