"""Our own model out of a checkpoint, to compare others with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoint.folder import read_manifest
from lit_gpt.checkpoint.tensor_files import TensorReader
from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT


def reader_of(checkpoint: Path, part: str = "model") -> TensorReader:
    """The tensors of one part of a checkpoint."""
    return TensorReader(checkpoint, read_manifest(checkpoint).of_parts([part]))


def load(checkpoint: Path) -> GPT:
    """In the precision of the checkpoint."""
    model, reader = GPT(ModelConfig.load(checkpoint)), reader_of(checkpoint)
    for name, parameter in model.named_parameters():
        parameter.data = reader.read(name)
    return model


def logits(model: GPT, ids: Tensor) -> Tensor:
    """(T, V) for one document of ids (T,)."""
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        return model(ids[None], torch.arange(len(ids))[None], Documents(bounds, len(ids)))[0]


def greedy(model: GPT, ids: list[int], n_tokens: int, never: Sequence[int] = ()) -> list[int]:
    """The likeliest continuation, token by token, without a cache and without the tokens of `never`."""
    tokens = torch.tensor(ids)
    for _ in range(n_tokens):
        scores = logits(model, tokens)[-1:].index_fill(1, torch.tensor(never, dtype=torch.int64), -torch.inf)
        tokens = torch.cat([tokens, scores.argmax(-1)])
    return tokens[len(ids) :].tolist()
