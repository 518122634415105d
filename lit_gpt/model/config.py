"""The shape of a model: named ones, or a YAML/JSON file of one's own."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lit_gpt.errors import InputError
from lit_gpt.option_parser import read_config
from lit_gpt.option_types import PositiveFloat, Range, build, convert_fields

# Far above any model; what is larger is a mistake, and would fill the memory before anything is said.
Count = Annotated[int, Range(at_least=1, at_most=10**5)]
Width = Annotated[int, Range(at_least=1, at_most=10**7)]
Length = Annotated[int, Range(at_least=1, at_most=2**31 - 1)]

VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, no biases."""

    name: str
    """What the shape is called; only for people."""
    n_layer: Count
    """Number of blocks."""
    n_head: Count
    """Query heads."""
    n_query_groups: Count
    """Key and value heads: `n_head` is multi-head attention, 1 is multi-query attention."""
    n_embd: Width
    """Width of the residual stream."""
    intermediate_size: Width
    """Width of the gated MLP."""
    block_size: Length
    """Longest sequence in tokens that the model is trained on."""
    vocab_size: Length | None = None
    """Rows of the embedding and of the head; None takes the token store's, padded to a multiple of 64."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_base: PositiveFloat = 10000.0
    """Base of the rotary frequencies ("theta")."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling in Hugging Face's words: rope_type linear, llama3 or yarn and its parameters."""
    tie_embeddings: bool = False
    """Whether the head is the embedding."""
    head_size: Width | None = None
    """Width of one head; None is n_embd / n_head."""

    def __post_init__(self) -> None:
        """Raises InputError with everything that is wrong with the shape."""
        fields, mistakes = convert_fields(type(self), vars(self))
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not mistakes:
            if self.n_head % self.n_query_groups:
                mistakes.append(f"n_query_groups {self.n_query_groups} does not divide n_head {self.n_head}")
            if self.head_size is None and self.n_embd % self.n_head:
                mistakes.append(f"n_head {self.n_head} does not divide n_embd {self.n_embd}")
            elif self.head_dim % 2:
                mistakes.append(f"heads are {self.head_dim} wide, but RoPE needs an even width")
        if mistakes:
            raise InputError(f"model {self.name}: {'; '.join(mistakes)}")

    @classmethod
    def load(cls, name_or_file: str | Path, **overrides: Any) -> "ModelConfig":
        """A shape by name, of a checkpoint folder, or from a YAML or JSON file with this class's fields.

        `overrides` win.

        Raises:
            InputError: none of the three, or a field that is wrong.
        """
        if str(name_or_file) in NAMED_SHAPES:
            fields = {"name": str(name_or_file), **NAMED_SHAPES[str(name_or_file)]}
        else:
            fields = {"name": Path(name_or_file).stem, **_read_fields(Path(name_or_file))}
        return cls.from_dict({**fields, **overrides}, origin=str(name_or_file))

    @classmethod
    def from_dict(cls, fields: dict[str, Any], origin: str) -> "ModelConfig":
        """The inverse of `to_dict`. Raises InputError that names `origin` and the field at fault."""
        try:
            return build(cls, fields)
        except ValueError as error:
            raise InputError(f"model {origin}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return dataclasses.asdict(self)

    def with_vocab_of(self, store_vocab_size: int) -> "ModelConfig":
        """This shape with a vocabulary: its own if it names one, else the store's, padded.

        Raises:
            InputError: the store holds ids that the model has no row for.
        """
        if self.vocab_size is None:
            padded = -(-store_vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
            return dataclasses.replace(self, vocab_size=padded)
        if store_vocab_size > self.vocab_size:
            raise InputError(
                f"the data's vocabulary has {store_vocab_size} ids, but model {self.name} has only "
                f"{self.vocab_size} rows; give a larger vocab_size or other data"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def qkv_rows(self) -> int:
        """Rows of the joint projection: all query heads, all key heads, all value heads."""
        return (self.n_head + 2 * self.n_query_groups) * self.head_dim

    @property
    def vocab_rows(self) -> int:
        """`vocab_size`, which must be known by now."""
        assert self.vocab_size is not None, "with_vocab_of was not called"
        return self.vocab_size

    @property
    def n_parameters(self) -> int:
        """All parameters; a tied head counts once."""
        attention = (self.qkv_rows + self.n_head * self.head_dim) * self.n_embd
        block = attention + 3 * self.n_embd * self.intermediate_size + 2 * self.n_embd
        embeddings = self.vocab_rows * self.n_embd * (1 if self.tie_embeddings else 2)
        return self.n_layer * block + embeddings + self.n_embd


def _read_fields(path: Path) -> dict[str, Any]:
    is_folder = os.path.isdir(path)
    file = path / "state.json" if is_folder else path
    if not os.path.exists(file):
        known = ", ".join(NAMED_SHAPES)
        raise InputError(f"model {path}: neither a file nor a checkpoint folder nor one of {known}")
    fields = read_config(file)
    if not is_folder:
        return fields
    if not isinstance(fields.get("model"), dict):
        raise InputError(f"model {path}: its state.json names no model; it is not a trainer's checkpoint")
    return {"name": Path(str(fields.get("options", {}).get("model_name", path))).stem, **fields["model"]}


def _shape(
    n_layer: int, n_head: int, n_query_groups: int, n_embd: int, intermediate_size: int, block_size: int
) -> dict[str, Any]:
    return {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_query_groups": n_query_groups,
        "n_embd": n_embd,
        "intermediate_size": intermediate_size,
        "block_size": block_size,
    }


NAMED_SHAPES: dict[str, dict[str, Any]] = {
    "LLaMmlein_120M": {**_shape(12, 12, 4, 768, 2048, 2048), "vocab_size": 32064},
    "LLaMmlein_1B": {**_shape(22, 32, 4, 2048, 5632, 2048), "vocab_size": 32064},
    "LLaMmlein_7B": {**_shape(32, 32, 32, 4096, 11008, 2048), "vocab_size": 32064},
    # For one device: tied embeddings, the store's vocabulary; the name is the size with 32,000 ids.
    "llama_15M": {**_shape(8, 4, 2, 256, 704, 512), "tie_embeddings": True},
    "llama_25M": {**_shape(8, 6, 2, 384, 1024, 1024), "tie_embeddings": True},
    "llama_50M": {**_shape(12, 8, 4, 512, 1408, 1024), "tie_embeddings": True},
    "llama_100M": {**_shape(12, 12, 4, 768, 2048, 2048), "tie_embeddings": True},
    "llama_300M": {**_shape(24, 16, 4, 1024, 2816, 2048), "tie_embeddings": True},
    "llama_500M": {**_shape(28, 20, 4, 1280, 3456, 2048), "tie_embeddings": True},
    "llama_1B": {**_shape(16, 32, 8, 2048, 8192, 2048), "tie_embeddings": True},
    # For tests and trials on a CPU; the name is the size of the blocks without embeddings.
    "tiny_100K": _shape(2, 4, 2, 64, 176, 128),
    "tiny_3M": _shape(4, 8, 4, 256, 688, 256),
    "tiny_20M": _shape(6, 8, 4, 512, 1408, 1024),
}
