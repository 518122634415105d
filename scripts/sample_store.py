"""A token store made of the sample corpus, for commands that only need some text to train on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sample_store(folder: Path, vocab_size: int = 8192, megabytes: float = 4.0) -> str:
    """Corpus, tokenizer and store in `folder`, by the project's own commands; returns the store's path."""
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
