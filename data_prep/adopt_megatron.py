"""Make a token store from shards that Megatron-LM's tools wrote. Documents stay as they are."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data_prep.reading.inputs import find_files
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.store.shard_files import ROW_GROUP, DocumentColumns, ShardIndex, read_index, write_documents
from lit_gpt.store.store_writer import shard_entry, write_manifest
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 1 << 24


@dataclass
class Options:
    """Make a token store from .bin and .idx files in Megatron-LM's IndexedDataset format.

    The files are hard-linked into the store if the file system allows it, else copied. The pairs become
    shard-00000, shard-00001, ...; document 7 of the first gets the id `shard-00000:7`.
    """

    input: list[str]
    """The .idx files, or globs; each must have its .bin beside it."""
    tokenizer: Path
    """Folder of the tokenizer that made the tokens."""
    output: Path
    """Folder of the store to make."""


def main(options: Options) -> None:
    tokenizer = Tokenizer.load(options.tokenizer)
    files = find_files(options.input, (".idx",))
    if options.output.exists() and any(options.output.iterdir()):
        raise InputError(f"{options.output} is not empty; give another folder, or remove it")
    indices = [read_index(file, _data_bytes(file)) for file in files]
    dtype = _common_dtype(files, indices)
    for file, index in zip(progress(files, description="check", unit="shard"), indices, strict=True):
        _check_tokens(file.with_suffix(".bin"), index, tokenizer)
    options.output.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, file in enumerate(progress(files, description="adopt", unit="shard")):
        name = f"shard-{number:05d}"
        for suffix in (".bin", ".idx"):
            _link(file.with_suffix(suffix), options.output / (name + suffix))
        write_documents(options.output / name, _documents(name, file, indices[number]))
        shards.append(shard_entry(options.output, name, tokenizer))
    inputs = [{"path": str(file), "bytes": _data_bytes(file)} for file in files]
    write_manifest(options.output, tokenizer, dtype, shards, {"command": "adopt_megatron", "inputs": inputs})
    store = TokenStore.open(options.output)
    print(f"{options.output}: {store.n_documents:,} documents, {store.n_tokens:,} tokens")
    for warning in store.document_ends.warnings(options.output):
        print(warning, file=sys.stderr)


def _data_bytes(index_file: Path) -> int:
    data = index_file.with_suffix(".bin")
    if not data.is_file():
        raise InputError(f"--input {index_file} is not an .idx file with its .bin beside it")
    return data.stat().st_size


def _common_dtype(files: list[Path], indices: list[ShardIndex]) -> np.dtype:
    for file, index in zip(files, indices, strict=True):
        if index.dtype != indices[0].dtype:
            both = f"{indices[0].dtype} and {index.dtype}"
            raise InputError(f"{files[0]} and {file} hold tokens of {both}; adopt them as two stores")
    return indices[0].dtype


def _check_tokens(data: Path, index: ShardIndex, tokenizer: Tokenizer) -> None:
    """Raises InputError if there is no token, or one outside the tokenizer's vocabulary."""
    if not index.lengths.any():
        raise InputError(f"{data} holds no document with a token; leave it out")
    tokens = np.memmap(data, dtype=index.dtype, mode="r")
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        part = tokens[start : start + _TOKENS_AT_ONCE]
        for token in (int(part.max()), int(part.min())):
            if not 0 <= token < tokenizer.vocab_size:
                vocabulary = f"the {tokenizer.vocab_size} of {tokenizer.folder}"
                raise InputError(
                    f"{data} holds token {token}, not one of {vocabulary}; give its own tokenizer"
                )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _documents(name: str, file: Path, index: ShardIndex) -> Iterator[DocumentColumns]:
    for start in range(0, len(index.lengths), ROW_GROUP):
        numbers = range(start, min(start + ROW_GROUP, len(index.lengths)))
        yield DocumentColumns(
            ids=[f"{name}:{number}" for number in numbers],
            sources=[str(file)] * len(numbers),
            source_lines=numbers,
            lengths=index.lengths[numbers.start : numbers.stop],
        )


if __name__ == "__main__":
    run_command(Options, main)
