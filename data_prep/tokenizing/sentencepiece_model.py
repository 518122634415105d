"""Extend a SentencePiece model by the tokens of an extended `tokenizer.json`, and count where both agree.

SentencePiece merges whatever two pieces make a piece, not the pairs that were learned, so an extended model
may encode differently.
"""

from collections.abc import Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_prep.tokenizing.continued_bpe import SPACES
from lit_gpt.store.tokenizer import Tokenizer

NAME = "tokenizer.model"


def is_model(data: bytes) -> bool:
    """Whether this is a SentencePiece model: other files have the name too."""
    try:
        return bool(data) and bool(sentencepiece.SentencePieceProcessor(model_proto=data))
    except RuntimeError:
        return False


def extended_model(
    model: bytes, tokenizer: Tokenizer, added: dict[str, bool], special: Sequence[str]
) -> bytes | None:
    """The model with a piece for each further id of `tokenizer`; None where an id has no token.

    Args:
        added: the base's added tokens, and whether each is special.
        special: the new special tokens.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    kinds = proto.SentencePiece.Type
    score = min(piece.score for piece in proto.pieces)
    for token_id in range(len(proto.pieces), tokenizer.vocab_size):
        content = tokenizer.token(token_id)
        if content is None:
            return None
        if content in special or added.get(content):
            kind = kinds.CONTROL
        else:
            kind = kinds.USER_DEFINED if content in added else kinds.NORMAL
        score -= 1  # later merges have lower scores
        text = content.replace(" ", SPACES[0]) if kind == kinds.NORMAL else content
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def agreement(model: bytes, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """On how many of the texts SentencePiece gives the tokenizer's ids; -1 if it does not load the model."""
    try:
        theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        return -1
    return sum(theirs.encode(text) == tokenizer.encode([text])[0][1:-1].tolist() for text in texts)
