"""Tokens as text: which are targets, and what the model loses on each with the weights of a checkpoint."""

import functools
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lit_gpt.store.masking import ids_of, is_target
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lit_gpt.model.gpt import GPT

PART = 4096
"""Tokens of a long document that are shown at a time."""
_LOADING = threading.Lock()


class Piece(NamedTuple):
    """Tokens that are shown alike. `loss` in nats, None where it was not asked for, or there is no target."""

    text: str
    is_target: bool
    loss: float | None = None


@functools.lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer in a store."""
    return Tokenizer.load(folder / "tokenizer", cache_words=False)


def text_of(store: TokenStore, raw: np.ndarray) -> str:
    """The text of raw tokens, without special tokens."""
    return tokenizer_of(store.path).decode(ids_of(raw))


def pieces(store: TokenStore, raw: np.ndarray, losses: np.ndarray | None = None) -> list[Piece]:
    """The text of raw tokens (n,): token by token with their losses (n,), without in as few pieces as can be.

    In masked stores what is no target is told from what is; special tokens that are targets are named.
    """
    targets = is_target(raw)
    if losses is None and targets.all():
        return [Piece(text_of(store, raw), True)]
    texts = token_texts(tokenizer_of(store.path), ids_of(raw))
    if losses is None:
        at = 0
        runs = []
        for target, group in itertools.groupby(targets.tolist()):
            count = len(list(group))
            runs.append(Piece("".join(texts[at : at + count]), target))
            at += count
        return runs
    known = [float(loss) if np.isfinite(loss) else None for loss in losses]
    return [Piece(*one) for one in zip(texts, targets.tolist(), known, strict=True)]


def token_texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The text that each token adds; a character of several tokens stands at its last one.

    Special tokens are ⟨named⟩.
    """
    texts: list[str] = []
    context = begin = 0  # tokens[context:begin] decide how the next one is spelled, such as with a space
    for end in range(1, len(ids) + 1):
        before, now = (tokenizer.decode(ids[context:stop]) for stop in (begin, end))
        if now == before and (token := tokenizer.token(int(ids[end - 1]))) and end - begin == 1:
            texts.append(f"⟨{token.strip('<>|')}⟩")
        elif now.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        else:
            texts.append(now[len(before) :])
        context, begin = begin, end
    return texts


def token_losses(checkpoint: Path, raw: np.ndarray) -> np.ndarray:
    """The loss of each token (n,) of a segment, fed as in training: alone. float32 (n,), in nats.

    NaN for the first token, which is no target, and for those that are masked.

    Raises:
        InputError: the checkpoint is damaged.
    """
    import torch

    from lit_gpt.model.attention import Documents

    model = _model(checkpoint)
    ids = torch.from_numpy(ids_of(raw).astype(np.int64))
    count = ids.numel() - 1
    bounds = torch.tensor([0, count], dtype=torch.int32)
    with torch.no_grad():
        hidden = model.transformer(ids[None, :-1], torch.arange(count)[None], Documents(bounds, count))[0]
        chunks = zip(hidden.split(512), ids[1:].split(512), strict=True)
        losses = [
            torch.nn.functional.cross_entropy(model.lm_head(part).float(), labels, reduction="none")
            for part, labels in chunks
        ]
    result = np.concatenate([[np.nan], *(part.numpy() for part in losses)]).astype(np.float32)
    result[~is_target(raw)] = np.nan
    return result


def _model(checkpoint: Path) -> "GPT":
    with _LOADING:
        return _load(checkpoint)


@functools.lru_cache(maxsize=1)
def _load(checkpoint: Path) -> "GPT":
    """The weights in the checkpoint's precision, on the CPU."""
    from lit_gpt.checkpoint.folder import verify
    from lit_gpt.checkpoint.tensor_files import TensorReader
    from lit_gpt.model.config import ModelConfig
    from lit_gpt.model.gpt import GPT

    manifest = verify(checkpoint, parts=("state", "model"))
    model = GPT(ModelConfig.load(checkpoint))
    reader = TensorReader(checkpoint, manifest.of_parts(["model"]))
    for name, parameter in model.named_parameters():
        parameter.data = reader.read(name)
    return model


def part_of(tokens: np.ndarray, part: int) -> tuple[np.ndarray, int]:
    """The `part`-th (from 1) PART tokens of a long document, and how many parts it has."""
    count = max(-(-tokens.size // PART), 1)
    at = min(max(part, 1), count) - 1
    return tokens[at * PART : (at + 1) * PART], count


def mean_loss(parts: Sequence[Piece]) -> float | None:
    """Over the targets that have a loss."""
    known = [piece.loss for piece in parts if piece.loss is not None]
    return sum(known) / len(known) if known else None
