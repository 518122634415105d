"""The manifest of a token store: what it holds, and the size and hash of each of its files.

The hash is xxh3_128: it runs at the speed of memory, so that a shard can be hashed whenever it is copied. It
finds every accident; it is no protection against someone who forges a file.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from lit_gpt.cli import InputError

FORMAT_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file."""

    bytes: int
    xxh3_128: str

    @classmethod
    def of(cls, path: Path, sync: bool = False) -> "FileEntry":
        """Read and hash a file, having brought it to disk if `sync`."""
        digest, size = xxhash.xxh3_128(), 0
        with path.open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
        return cls(size, digest.hexdigest())


@dataclass(frozen=True)
class ShardEntry:
    """One shard."""

    name: str
    n_documents: int
    n_tokens: int
    n_with_bos: int
    """Documents whose first token is BOS."""
    n_with_eos: int
    """Documents whose last token is EOS."""
    files: dict[str, FileEntry]
    """By file name: NAME.bin, NAME.idx, NAME.docs.parquet, NAME.ids."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardEntry":
        """Undo `dataclasses.asdict`."""
        files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
        return cls(**values | {"files": files})


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    dtype: str
    """uint16 or int32."""
    vocab_size: int
    tokenizer: str
    """Fingerprint of the tokenizer."""
    special_tokens: dict[str, int | None]
    """Ids of bos, eos and unk."""
    shards: list[ShardEntry]
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the documents came from, as told by the command that wrote the store."""
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 over what defines the content: tokens, bounds, ids, vocabulary."""
        hashes = [
            [shard.files[shard.name + end].xxh3_128 for end in (".bin", ".idx", ".ids")]
            for shard in self.shards
        ]
        defining = [self.dtype, self.vocab_size, self.tokenizer, self.special_tokens, hashes]
        return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Text that is the same whenever the content is."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a store.

        Raises:
            InputError: there is none, or it is none that this program reads.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(
                    f"format version {values['format_version']}, this program reads {FORMAT_VERSION}"
                )
            return cls(**values | {"shards": [ShardEntry.from_json(shard) for shard in values["shards"]]})
        except (FileNotFoundError, NotADirectoryError):
            hint = "write one with data_prep/tokenize_corpus.py"
            raise InputError(f"{folder} is not a token store (it has no {NAME}); {hint}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is not the manifest of a token store: {error!r}; write the store anew"
            ) from error


_REMEDY = "Tokenize the text with data_prep/tokenize_corpus.py"


class DocumentEnds(NamedTuple):
    """How documents begin and end, which is what a model learns of the beginning and the end of a text."""

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
        """What a model trained on the documents of `store` will lack, and the remedy."""
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
            except OSError:
                raise InputError(f"{folder / name} is missing though {NAME} names it; restore it") from None
            if size != entry.bytes:
                hint = "truncated or replaced, restore it"
                raise InputError(f"{folder / name} has {size} bytes, {NAME} says {entry.bytes}: {hint}")
