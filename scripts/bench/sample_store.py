"""Token stores for commands that need data to train on: the sample corpus, or random documents."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tokenizers

from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def sample_store(folder: Path, vocab_size: int = 8192, megabytes: float = 4.0) -> str:
    """Make corpus, tokenizer and store in `folder` with the project's commands; returns the store's path."""
    corpus, tokenizer, store = folder / "corpus.jsonl", folder / "tokenizer", folder / "store"
    commands: dict[str, dict[str, object]] = {
        "sample_corpus.py": {"output": corpus, "megabytes": megabytes},
        "train_tokenizer.py": {"input": corpus, "output": tokenizer, "vocab_size": vocab_size},
        "tokenize_corpus.py": {"input": corpus, "tokenizer": tokenizer, "output": store},
    }
    for name, options in commands.items():
        flags = [text for flag, value in options.items() for text in (f"--{flag}", str(value))]
        subprocess.run(
            [sys.executable, str(ROOT / "data_prep" / name), *flags], check=True, stdout=sys.stderr
        )
    return str(store)


def fixed_length_store(folder: Path, length: int, vocab_size: int = 32064, tokens: int = 2_000_000) -> str:
    """Write documents of random tokens with `length` targets each; returns the store's path in `folder`."""
    rng = np.random.default_rng(length)
    store = TokenStoreWriter(folder / f"store-{length}", _numbers_tokenizer(folder / "numbers", vocab_size))
    n_documents = max(tokens // (length + 1), 1)
    documents = rng.integers(2, vocab_size, (n_documents, length + 1))
    documents[:, 0], documents[:, -1] = store.tokenizer.bos_id, store.tokenizer.eos_id
    ids = [f"random/{number}" for number in range(n_documents)]
    lengths = np.full(n_documents, length + 1)
    store.add_many(ids, "random", list(range(n_documents)), lengths, documents.reshape(-1))
    store.finish({})
    return str(store.folder)


def _numbers_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """A tokenizer of `vocab_size` numbers, since every store needs one."""
    folder.mkdir(exist_ok=True)
    words = {"<s>": 0, "</s>": 1} | {str(number): number for number in range(2, vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="2"))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return Tokenizer.load(folder)
