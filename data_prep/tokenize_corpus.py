"""Tokenize documents into a token store, and a share of them into a second one for validation."""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xxhash

from data_prep.readers import SetAside, find_files, read_documents
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.token_store import MAX_SHARD_TOKENS, TokenStoreWriter
from lit_gpt.tokenizer import Tokenizer


@dataclass
class Options:
    """Tokenize documents into a token store."""

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst."""
    tokenizer: Path
    """Folder of the tokenizer."""
    output: Path
    """Folder of the store."""
    val_fraction: float = 0.0
    """Share of the documents, chosen by a hash of the id, that go to --val_output."""
    val_output: Path | None = None
    """Folder of the validation store."""
    workers: int = 1
    """Processes."""
    max_shard_tokens: int = MAX_SHARD_TOKENS
    """A shard ends before it would hold more."""
    max_bad_lines: int = 1000
    """Stop after so many unusable lines."""


def main(options: Options) -> None:
    """Read, encode, write."""
    if (options.val_fraction > 0) != (options.val_output is not None):
        raise InputError("--val_fraction and --val_output go together: give both or none")
    tokenizer = Tokenizer.load(options.tokenizer)
    set_aside = SetAside(options.max_bad_lines)
    documents = read_documents(find_files(options.input), set_aside)
    store = TokenStoreWriter(options.output, tokenizer, options.max_shard_tokens)
    validation = None
    if options.val_output is not None:
        validation = TokenStoreWriter(options.val_output, tokenizer, options.max_shard_tokens)
    documents = iter(progress(documents, description="tokenize", unit="doc"))
    while batch := list(islice(documents, 1000)):
        for document, tokens in zip(
            batch, tokenizer.encode([document.text for document in batch]), strict=True
        ):
            if len(tokens) <= 2:
                continue
            chosen = validation if validation and is_validation(document.id, options.val_fraction) else store
            chosen.add(document.id, document.source, document.source_line, tokens)
    for writer in (store, validation):
        if writer is not None:
            done = writer.finish({"set_aside": set_aside.counts()})
            print(f"{done.path}: {done.n_documents} documents, {done.n_tokens} tokens")


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document is one of the share held out; depends on its id alone."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=1) < fraction * 2**64


if __name__ == "__main__":
    run_command(Options, main)
