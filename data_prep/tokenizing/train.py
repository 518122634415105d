"""Train tokenizers: byte-level BPE, or BPE by SentencePiece in Llama's style.

SentencePiece learns `tokenizer.model`; `tokenizer.json` has its tokens and ids for the `tokenizers` library.
All white space is kept and rare characters become bytes. In `tokenizer.json` a space is a space;
SentencePiece writes it as `▁` and cannot tell it from a `▁` in the text, which here becomes bytes.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.reading.documents import TEXT_FIELDS, sample_texts
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import Rejects, losses_in_short
from lit_gpt.cli import InputError, progress
from lit_gpt.files import create, write_atomically
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from lit_gpt.store.tokenizer import begin_with_bos, for_transformers
from lit_gpt.store.word_cache import WORDS

UNK, BOS, EOS = "<unk>", "<s>", "</s>"  # the first ids; only SentencePiece has <unk>, and never uses it
MAX_LINE_BYTES = 1 << 20
_SPACE = "▁"
_NORMAL = 1  # kinds of tokens, from SentencePiece's ModelProto
_BYTE = 6


@dataclass
class Options:
    """Train a BPE tokenizer on documents. It encodes every text without loss."""

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."""
    output: Path
    """Folder for tokenizer.json and tokenizer_config.json."""
    vocab_size: PositiveInt = 32000
    """Number of ids, special tokens included; rounded up to a multiple of --vocab_multiple."""
    type: Literal["byte_level", "sentencepiece"] = "byte_level"
    """`sentencepiece` also writes tokenizer.model, which Llama's tools read."""
    special_tokens: list[str] = field(default_factory=list)
    """More special tokens, for example for chats; no text is ever encoded as one."""
    vocab_multiple: PositiveInt = 64
    """Matrix products are fastest with a multiple of 64."""
    sample_mb: PositiveFloat = 2000.0
    """Text to learn from, in 10^6 bytes: the beginning of each file, in proportion to its size."""
    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop if there are more unusable lines."""


def train_tokenizer(options: Options) -> None:
    """Read a sample of the texts, train, write the tokenizer's folder.

    Raises:
        InputError: the folder holds a tokenizer, the input is unusable, or --vocab_size does not fit it.
    """
    if (options.output / "tokenizer.json").exists():
        raise InputError(f"{options.output} holds a tokenizer already; give another --output or remove it")
    rejects = Rejects(options.max_bad_lines)
    files = find_files(options.input)
    look_into(files, options.text_fields, (), max_bad_lines=options.max_bad_lines)
    with progress(description="read", unit="B") as bar:
        texts = sample_texts(files, options.sample_mb * 1e6, rejects, options.text_fields)
        vocab_size = -(-options.vocab_size // options.vocab_multiple) * options.vocab_multiple
        learn = train_byte_level if options.type == "byte_level" else train_sentencepiece
        learn(_counted(texts, bar.update), vocab_size, options.output, options.special_tokens)
        n_bytes = bar.n
    print(f"{options.output}: {vocab_size:,} tokens learned from {n_bytes / 1e6:,.1f} MB of text")
    for reason, count in rejects.counts.items():
        print(f"skipped: {count:,} {reason}")
    for line in losses_in_short(rejects.losses()):
        print(line)


def _counted(texts: Iterable[str], count: Callable[[int], object]) -> Iterator[str]:
    for text in texts:
        count(len(text.encode()))
        yield text


def train_byte_level(
    texts: Iterable[str], vocab_size: int, output: Path, special_tokens: Sequence[str] = ()
) -> None:
    """Train a byte-level BPE tokenizer and write its folder, for `AutoTokenizer` and `Tokenizer.load`.

    Raises:
        InputError: the vocabulary is too small for all bytes, or larger than the texts yield.
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
    _write(output, backend, {"bos_token": BOS, "eos_token": EOS})


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, output: Path, special_tokens: Sequence[str] = ()
) -> None:
    """Train a SentencePiece BPE tokenizer and write its folder, with `tokenizer.model`.

    Raises:
        InputError: the vocabulary is too small for all bytes, or larger than the texts yield.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=MAX_LINE_BYTES,
            control_symbols=list(special_tokens),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"SentencePiece: {str(error)[-200:]} (--vocab_size {vocab_size})") from None
    output.mkdir(parents=True, exist_ok=True)
    with create(output / "tokenizer.model") as file:
        file.write(model.getvalue())
    backend = _same_tokens(model.getvalue())
    # add_prefix_space as in tokenizer.json, for readers of tokenizer.model
    config = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "add_prefix_space": False}
    _write(output, backend, config)


def _write(output: Path, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Write the folder; tokenizer.json last."""
    begin_with_bos(backend, BOS)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "tokenizer_config.json", json.dumps(for_transformers(config), indent=1) + "\n")
    write_atomically(output / "tokenizer.json", backend.to_str(pretty=True))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece learns from lines; it encodes a line end as a byte."""
    for text in texts:
        yield from filter(None, text.split("\n"))


def _same_tokens(model: bytes) -> tokenizers.Tokenizer:
    """A tokenizer with SentencePiece's tokens under their ids."""
    pieces = list(sentencepiece_model_pb2.ModelProto.FromString(model).pieces)
    names = [piece.piece if piece.type != _NORMAL else piece.piece.replace(_SPACE, " ") for piece in pieces]
    learned = [name for name, piece in zip(names, pieces, strict=True) if piece.type == _NORMAL]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = list(_merges(learned))
    bpe = models.BPE(vocabulary, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(bpe)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.piece for piece in pieces if piece.type not in (_NORMAL, _BYTE)]
    backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in special])
    return backend


def _merges(learned: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs that make a token, by the tokens' scores, whose order is that of the ids."""
    known = set(learned)
    for piece in learned:
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]
