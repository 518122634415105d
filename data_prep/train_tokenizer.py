"""Train a BPE tokenizer, of bytes or by SentencePiece: every text can be encoded and comes back as it was."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.reading.documents import (
    TEXT_FIELDS,
    SetAside,
    find_files,
    look_into,
    losses_in_short,
    read_documents,
)
from data_prep.tokenizing import sentencepiece_bpe
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.files import write_atomically
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from lit_gpt.store.tokenizer import begin_with_bos, for_transformers
from lit_gpt.store.word_cache import WORDS

BOS, EOS = "<s>", "</s>"  # ids 0 and 1, whatever the vocabulary


@dataclass
class Options:
    """Train a BPE tokenizer on documents."""

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."""
    output: Path
    """Folder for tokenizer.json and tokenizer_config.json."""
    vocab_size: PositiveInt = 32000
    """Ids, special tokens included; rounded up to a multiple of --vocab_multiple."""
    type: Literal["byte_level", "sentencepiece"] = "byte_level"
    """`sentencepiece` also writes tokenizer.model, which Llama's tools read."""
    special_tokens: list[str] = field(default_factory=list)
    """Further special tokens, for example of chats: never made from text."""
    vocab_multiple: PositiveInt = 64
    """Matrix products are fastest with such sizes."""
    sample_mb: PositiveFloat = 2000.0
    """Million bytes of text to learn from, of each file's beginning a share by its size."""
    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop after so many unusable lines."""


def main(options: Options) -> None:
    """Read a sample, train, write, say what came out."""
    if (options.output / "tokenizer.json").exists():
        raise InputError(f"{options.output} holds a tokenizer already; give another --output or remove it")
    set_aside = SetAside(options.max_bad_lines)
    files = find_files(options.input)
    look_into(files, options.text_fields, ())
    with progress(description="read", unit="B") as bar:
        texts = sample(files, options.sample_mb * 1e6, set_aside, options.text_fields)
        vocab_size = -(-options.vocab_size // options.vocab_multiple) * options.vocab_multiple
        learn = train if options.type == "byte_level" else sentencepiece_bpe.train
        learn(_counted(texts, bar.update), vocab_size, options.output, options.special_tokens)
        n_bytes = bar.n
    print(f"{options.output}: {vocab_size:,} tokens learned from {n_bytes / 1e6:,.1f} MB of text")
    for reason, count in set_aside.counts.items():
        print(f"skipped: {count:,} {reason}")
    for line in losses_in_short(set_aside.losses()):
        print(line)


def sample(files: list[Path], n_bytes: float, set_aside: SetAside, text_fields: list[str]) -> Iterator[str]:
    """Texts from the beginning of each file: its share in size of `n_bytes` of UTF-8."""
    total = sum(file.stat().st_size for file in files)
    for file in files:
        left = n_bytes * file.stat().st_size / total
        for document in read_documents([file], set_aside, text_fields):
            yield document.text
            left -= len(document.text.encode())
            if left <= 0:
                break


def train(texts: Iterable[str], vocab_size: int, output: Path, special_tokens: Sequence[str] = ()) -> None:
    """Train on bytes of texts and write the folder, which `AutoTokenizer` and `Tokenizer.load` read alike.

    Raises:
        InputError: the vocabulary is too small for all bytes, or larger than the texts give.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [BOS, EOS, *special_tokens]
    if vocab_size < len(alphabet) + len(special):
        needed = len(alphabet) + len(special)
        raise InputError(f"--vocab_size {vocab_size} is too small: bytes and special tokens take {needed}")
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        hint = "give more text or a smaller one"
        raise InputError(
            f"the text gives {backend.get_vocab_size()} tokens, --vocab_size is {vocab_size}; {hint}"
        )
    begin_with_bos(backend, BOS)
    output.mkdir(parents=True, exist_ok=True)
    config = {
        "bos_token": BOS,
        "eos_token": EOS,
    }
    write_atomically(output / "tokenizer_config.json", json.dumps(for_transformers(config), indent=1) + "\n")
    write_atomically(output / "tokenizer.json", backend.to_str(pretty=True))


def _counted(texts: Iterable[str], count: Callable[[int], object]) -> Iterator[str]:
    for text in texts:
        count(len(text.encode()))
        yield text


if __name__ == "__main__":
    run_command(Options, main)
