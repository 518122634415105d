"""Train a byte-level BPE tokenizer: every text is encodable, so there is no unknown token."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.readers import SetAside, find_files, read_documents
from lit_gpt.cli import InputError, run_command
from lit_gpt.word_cache import WORDS

BOS, EOS = "<s>", "</s>"


@dataclass
class Options:
    """Train a byte-level BPE tokenizer on documents."""

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst."""
    output: Path
    """Folder for tokenizer.json and tokenizer_config.json."""
    vocab_size: int = 32000
    """Ids, special tokens included."""
    max_bad_lines: int = 1000
    """Stop after so many unusable lines."""


def main(options: Options) -> None:
    """Read, train, write."""
    set_aside = SetAside(options.max_bad_lines)
    texts = (document.text for document in read_documents(find_files(options.input), set_aside))
    train(texts, options.vocab_size, options.output)


def train(texts: Iterator[str], vocab_size: int, output: Path) -> None:
    """Train on texts and write the folder."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise InputError(f"the text gives {backend.get_vocab_size()} tokens, not --vocab_size {vocab_size}")
    output.mkdir(parents=True, exist_ok=True)
    backend.save(str(output / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(Options, main)
