"""The manifest of a token store: what it holds, and the size and hash of each of its files."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.files import read_json
from lit_gpt.hashed_files import FileEntry
from lit_gpt.option_types import NonNegativeInt, Range, build

FORMAT_VERSION, MASKED_FORMAT_VERSION = 1, 2
NAME = "manifest.json"
Dtype = Literal["uint16", "int32"]
SUFFIXES = (".bin", ".idx", ".docs.parquet", ".ids")


@dataclass(frozen=True)
class ShardEntry:
    name: str
    n_documents: NonNegativeInt
    n_tokens: NonNegativeInt
    n_with_bos: NonNegativeInt
    """Documents whose first token is BOS."""
    n_with_eos: NonNegativeInt
    """Documents whose last token is EOS."""
    files: dict[str, FileEntry]
    """By file name: NAME.bin, NAME.idx, NAME.docs.parquet, NAME.ids."""
    n_targets: NonNegativeInt | None = None
    """Of a masked store: tokens that are targets. A document's first is none: nothing predicts it."""

    def __post_init__(self) -> None:
        """Raises ValueError: what it says does not fit together."""
        missing = {self.name + suffix for suffix in SUFFIXES} - self.files.keys()
        if missing or any(Path(name).name != name for name in self.files):
            raise ValueError(f"{self.name}: its files are not those of a shard: {', '.join(self.files)}")
        if max(self.n_with_bos, self.n_with_eos) > self.n_documents:
            raise ValueError(f"{self.name}: more documents with BOS or EOS than documents")


@dataclass(frozen=True)
class ChatFormat:
    """How the conversations of a store were written as text."""

    template: str
    """Of transformers' `apply_chat_template`, in Jinja."""
    end_of_turn: NonNegativeInt
    """Id of the token that ends a turn."""


@dataclass(frozen=True)
class Manifest:
    dtype: Dtype
    vocab_size: Annotated[int, Range(at_least=1, at_most=2**31)]
    tokenizer: str
    special_tokens: dict[str, NonNegativeInt | None]
    """Ids of bos, eos and unk."""
    shards: list[ShardEntry]
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the documents came from, as told by the command that wrote the store."""
    masked: bool = False
    """Whether the sign bit of a token says that it is not a target, see masking.py."""
    chat: ChatFormat | None = None
    """Of a masked store that holds conversations."""

    def __post_init__(self) -> None:
        """Raises ValueError: the parts do not fit together."""
        ids = {name: self.special_tokens[name] for name in ("bos", "eos") if name in self.special_tokens}
        if len(ids) < 2 or any(token is not None and token >= self.vocab_size for token in ids.values()):
            raise ValueError(f"special_tokens: bos, eos must be null or below vocab_size {self.vocab_size}")
        if self.masked and self.dtype != "int32":
            raise ValueError(f"masked tokens are int32, not {self.dtype}")
        if self.chat and not (self.masked and self.chat.end_of_turn < self.vocab_size):
            raise ValueError("chat: the store must be masked and end_of_turn an id of its vocabulary")
        if any((shard.n_targets is not None) != self.masked for shard in self.shards):
            raise ValueError("n_targets: the shards of masked stores have it, and no others")
        for shard in self.shards:
            if shard.n_tokens * np.dtype(self.dtype).itemsize > shard.files[f"{shard.name}.bin"].bytes:
                raise ValueError(f"{shard.name}: {shard.n_tokens} tokens do not fit into its .bin")

    @property
    def format_version(self) -> int:
        """A version of its own for masked stores: an earlier reader would take the mask for ids."""
        return MASKED_FORMAT_VERSION if self.masked else FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 over what defines the content: tokens, bounds, ids, vocabulary."""
        hashes = [
            [shard.files[shard.name + end].xxh3_128 for end in (".bin", ".idx", ".ids")]
            for shard in self.shards
        ]
        defining = [self.dtype, self.vocab_size, self.tokenizer, self.special_tokens, hashes]
        defining += ["masked"] if self.masked else []
        return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Text that is the same whenever the content is."""
        values = asdict(self) | {"format_version": self.format_version}
        if not self.masked:  # the manifest that there was before there were masks
            del values["masked"]
            for shard in values["shards"]:
                del shard["n_targets"]
        if self.chat is None:
            del values["chat"]
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a store.

        Raises:
            InputError: there is none, or it is none that this program reads.
        """
        path = folder / NAME
        if not os.path.exists(path):
            hint = "write one with data_prep/tokenize_corpus.py"
            raise InputError(f"{folder} is not a token store (it has no {NAME}); {hint}")
        values = read_json(path, "tokenize again")
        try:
            version = values.pop("format_version", None)
            if version not in (FORMAT_VERSION, MASKED_FORMAT_VERSION):
                known = f"{FORMAT_VERSION} and {MASKED_FORMAT_VERSION}"
                raise ValueError(f"format version {version}, this program reads {known}")
            manifest = build(cls, values)
            if manifest.format_version != version:
                raise ValueError(
                    f"masked is {manifest.masked}, which format version {version} does not allow"
                )
            return manifest
        except ValueError as error:
            reason = f"{error}; tokenize again"
            raise InputError(f"{path} is not the manifest of a token store: {reason}") from error


_REMEDY = "Tokenize the text with data_prep/tokenize_corpus.py"


class DocumentEnds(NamedTuple):
    """How many documents begin with BOS and end with EOS, from which a model learns where texts do."""

    documents: int
    with_bos: int
    with_eos: int

    @classmethod
    def of(cls, manifests: Iterable[Manifest]) -> "DocumentEnds":
        """Of all documents of several stores."""
        shards = [shard for manifest in manifests for shard in manifest.shards]
        return cls(
            sum(shard.n_documents for shard in shards),
            sum(shard.n_with_bos for shard in shards),
            sum(shard.n_with_eos for shard in shards),
        )

    @property
    def begin_with_bos(self) -> bool:
        """Whether BOS belongs before a text: most documents have it."""
        return 2 * self.with_bos > self.documents

    def warnings(self, store: Path) -> list[str]:
        """Warn of what a model trained on `store` will lack, with the remedy."""
        lines = []
        if self.with_bos < self.documents:
            puts = "BOS" if self.begin_with_bos else "no BOS"
            lines.append(
                f"warning: {store}: {self.with_bos:,} of {self.documents:,} documents begin with BOS; "
                f"tokenizers exported with its models put {puts} before a text. {_REMEDY} to train with BOS"
            )
        if self.with_eos < self.documents:
            lines.append(
                f"warning: {store}: {self.with_eos:,} of {self.documents:,} documents end with EOS, which "
                f"teaches a model where a text ends. {_REMEDY}, or with Megatron-LM's preprocess_data.py "
                "--append-eod"
            )
        return lines


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare the files of a store with its manifest by size.

    Raises:
        InputError: a file is missing or has another size.
    """
    for shard in manifest.shards:
        for name, entry in shard.files.items():
            try:
                size = (folder / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                raise InputError(f"{folder / name} is missing though {NAME} names it; restore it") from None
            if size != entry.bytes:
                hint = "truncated or replaced, restore it"
                raise InputError(f"{folder / name} has {size} bytes, {NAME} says {entry.bytes}: {hint}")
