"""Models of one shape -> the rows of a merged one: chat vector, SLERP, weighted mean.

In: Hugging Face folders, open as `MergedModel`s. Out: what `exporter.write_weights` asks for, some rows at a
time. All is computed in float32 and stored in the first model's dtype. Rows are passed on as they are where
nothing is to be added, so that the ends of every method are bitwise one of the models.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoint.tensor_files import TensorReader, TensorSpec
from lit_gpt.errors import InputError
from lit_gpt.hf.exporter import row_ranges
from lit_gpt.hf.importer import HFSource
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.tokenizer import Tokenizer

NEARLY_PARALLEL = 0.9995
"""Cosine beyond which SLERP is linear, as in mergekit: the angle's sine is a divisor."""

RowsOf = Callable[[TensorSpec, int, int], Tensor]
_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


class SourceModel:
    """A folder to merge: its shape, tensors and tokenizer. Nothing in it is executed or unpickled."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError: a file is missing or damaged, or the model is none that ours can be."""
        source = HFSource(folder)
        self.folder = folder
        self.config = source.config
        self.weight_files = sorted(source.weight_files)
        # The hub's cache holds links, which the reader does not follow.
        self.reader = TensorReader(folder, [str((folder / name).resolve()) for name in self.weight_files])
        self.tokenizer = Tokenizer.load(folder, cache_words=False)

    def specs(self) -> list[TensorSpec]:
        """The tensors in the model's order; those that follow from others (tied, RoPE) are left out."""
        names = [part.hf_name for key in parameter_shapes(self.config) for part in hf_parts(key, self.config)]
        return [TensorSpec(name, self.reader.dtype(name), self.reader.shape(name)) for name in names]


def check_shapes(models: Sequence[SourceModel], may_differ: Sequence[str] = ()) -> None:
    """Refuse models whose config.json describe different ones.

    Args:
        may_differ: Fields of ModelConfig, beside the context's length.

    Raises:
        InputError: naming the fields.
    """
    ignored = {"name", "block_size", *may_differ}
    first, *others = (dataclasses.asdict(model.config) for model in models)
    for model, config in zip(models[1:], others, strict=True):
        if wrong := [key for key in first if key not in ignored and first[key] != config[key]]:
            said = ", ".join(f"{key} {config[key]} instead of {first[key]}" for key in wrong)
            raise InputError(f"{model.folder}: is not of the shape of {models[0].folder}: {said}")


def check_dtypes(models: Sequence[SourceModel]) -> None:
    """Raises InputError: a tensor is stored in another dtype than the first model's."""
    for spec in models[0].specs():
        for model in models[1:]:
            if (dtype := model.reader.dtype(spec.name)) != spec.dtype:
                raise InputError(
                    f"{model.folder}: {spec.name} is {dtype}, in {models[0].folder} it is {spec.dtype}; the "
                    "rounding would be merged too: store both in one dtype"
                )


def check_ids(base: SourceModel, others: Sequence[SourceModel]) -> int:
    """Refuse models in which an id of the base's tokenizer means another string; they may have further ids.

    Returns:
        How many rows of embedding and head are of the same tokens in all models.

    Raises:
        InputError: naming the first id, or a model with fewer rows than ids.
    """
    shared = base.tokenizer.vocab_size
    for model in (base, *others):
        for token_id in range(shared):
            theirs, ours = model.tokenizer.token(token_id), base.tokenizer.token(token_id)
            if theirs != ours:
                raise InputError(
                    f"{model.folder}: id {token_id} is {theirs!r}, in {base.folder} it is {ours!r}; models "
                    "of different tokenizers cannot be merged"
                )
        if model.config.vocab_rows < shared:
            raise InputError(
                f"{model.folder}: has {model.config.vocab_rows} rows for a tokenizer of {shared} ids"
            )
    return shared


def weighted_mean(models: Sequence[SourceModel], weights: Sequence[float]) -> RowsOf:
    """(w1 m1 + ... + wn mn) / (w1 + ... + wn)."""
    factors = [weight / sum(weights) for weight in weights]
    return lambda spec, first, n_rows: _weighted(models, factors, spec, first, n_rows)


def slerp(one: SourceModel, other: SourceModel, t: float) -> RowsOf:
    """Along the arc from one model's tensor to the other's, each taken as one vector."""

    @cache
    def factors(spec: TensorSpec) -> tuple[float, float]:
        cosine = _cosine(one, other, spec)
        if abs(cosine) > NEARLY_PARALLEL:
            return 1 - t, t
        angle = math.acos(cosine)
        return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)

    return lambda spec, first, n_rows: _weighted([one, other], factors(spec), spec, first, n_rows)


def chat_vector(cpt: SourceModel, chat: SourceModel, base: SourceModel, w: float, shared_ids: int) -> RowsOf:
    """cpt + w (chat - base); in embedding and head for the first `shared_ids` rows, the others are cpt's.

    Huang et al., arXiv:2310.04799.
    """

    def rows_of(spec: TensorSpec, first: int, n_rows: int) -> Tensor:
        rows = cpt.reader.read_rows(spec.name, first, n_rows)
        changed = min(n_rows, max(0, shared_ids - first)) if spec.name in _BY_TOKEN else n_rows
        if w and changed:
            new, old = (model.reader.read_rows(spec.name, first, changed).float() for model in (chat, base))
            rows[:changed] = rows[:changed].float() + w * (new - old)
        return rows

    return rows_of


def finite(rows_of: RowsOf) -> RowsOf:
    """The same rows, checked: InputError names the tensor that has NaN or infinite values."""

    def checked(spec: TensorSpec, first: int, n_rows: int) -> Tensor:
        rows = rows_of(spec, first, n_rows)
        if not rows.isfinite().all():
            raise InputError(
                f"{spec.name} of the merged model has NaN or infinite values in {spec.dtype}; give smaller "
                "weights or models of another dtype"
            )
        return rows

    return checked


def _weighted(
    models: Sequence[SourceModel], factors: Sequence[float], spec: TensorSpec, first: int, n_rows: int
) -> Tensor:
    """The sum of each factor times its model's rows; exactly a model's rows where it is the only one."""
    terms = [(factor, model) for factor, model in zip(factors, models, strict=True) if factor]
    rows = [model.reader.read_rows(spec.name, first, n_rows) for _, model in terms]
    if [factor for factor, _ in terms] == [1.0]:
        return rows[0]
    result = rows[0].float() * terms[0][0]
    for (factor, _), others in zip(terms[1:], rows[1:], strict=True):
        result.add_(others.float(), alpha=factor)
    return result.to(spec.dtype)


def _cosine(one: SourceModel, other: SourceModel, spec: TensorSpec) -> float:
    """Of the angle between two flattened tensors; 0 where one of them is zero, as in mergekit."""
    dots = torch.zeros(3, dtype=torch.float64)
    for first, n_rows in row_ranges(spec):
        a, b = (m.reader.read_rows(spec.name, first, n_rows).double().flatten() for m in (one, other))
        dots += torch.stack([a @ b, a @ a, b @ b])
    dot, *squares = dots.tolist()
    return dot / math.sqrt(math.prod(squares)) if all(squares) else 0.0
