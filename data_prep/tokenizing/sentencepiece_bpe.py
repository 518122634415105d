"""Train a BPE tokenizer by SentencePiece, in Llama's style: all white space kept, bytes for rare characters.

SentencePiece learns `tokenizer.model`; `tokenizer.json` holds the same pieces under the same ids for the
`tokenizers` library. There a space is a space: SentencePiece writes it as `▁`, and cannot tell it from a `▁`
of the text, which here is bytes.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from lit_gpt.cli import InputError
from lit_gpt.files import create, write_atomically
from lit_gpt.store.tokenizer import begin_with_bos, for_transformers

UNK, BOS, EOS = "<unk>", "<s>", "</s>"  # ids 0, 1 and 2; with bytes to fall back on <unk> never occurs
MAX_LINE_BYTES = 1 << 20
_SPACE = "▁"
_NORMAL = 1  # kinds of pieces, from SentencePiece's ModelProto
_BYTE = 6


def train(texts: Iterable[str], vocab_size: int, output: Path, special_tokens: Sequence[str] = ()) -> None:
    """Train on texts and write the folder.

    Raises:
        InputError: the vocabulary is too small for all bytes, or larger than the texts give.
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
    config = {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "add_prefix_space": False,  # as in tokenizer.json, for those who read tokenizer.model
    }
    write_atomically(output / "tokenizer_config.json", json.dumps(for_transformers(config), indent=1) + "\n")
    backend = tokenizers.Tokenizer.from_str(json.dumps(_definition(model.getvalue())))
    begin_with_bos(backend, BOS)
    write_atomically(output / "tokenizer.json", backend.to_str(pretty=True))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece learns from lines; a line end is a byte to it."""
    for text in texts:
        yield from filter(None, text.split("\n"))


def _definition(model: bytes) -> dict[str, Any]:
    """`tokenizer.json` with SentencePiece's pieces under their ids."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces = list(proto.pieces)
    names = [piece.piece if piece.type != _NORMAL else piece.piece.replace(_SPACE, " ") for piece in pieces]
    learned = [name for name, piece in zip(names, pieces, strict=True) if piece.type == _NORMAL]
    special = [number for number, piece in enumerate(pieces) if piece.type not in (_NORMAL, _BYTE)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": names[number], **flags} for number in special],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": list(_merges(learned)),
        },
    }


def _merges(learned: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs that make a piece, the pieces in the order of their scores, which is that of their ids."""
    known = set(learned)
    for piece in learned:
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]
