"""A Hugging Face model folder out of a checkpoint: some rows in memory at a time, whole or not there at all.

config.json  generation_config.json  README.md        what it is
model-00001-of-00002.safetensors ...  .index.json      weights (one model.safetensors if they fit)
tokenizer.json  tokenizer_config.json  ...             as the data was tokenized
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.checkpoint.tensor_files import TensorReader, TensorSpec, split_into_files, write_tensors
from lit_gpt.cli import InputError, progress
from lit_gpt.hf.config import to_hf_config
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.tokenizer import Tokenizer

GIGABYTE = 10**9
# Of a tensor in memory at a time: what stays in a core's cache between reading and writing. Pieces of 16 MB
# took three times as long.
PIECE_BYTES = 1 << 20


class _Source(NamedTuple):
    """Where a Hugging Face tensor lies in ours."""

    key: str
    first_row: int


def write_hf_folder(
    folder: Path,
    reader: TensorReader,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer,
    tokenizer_files: Sequence[Path] = (),
    bos: bool | None,
    card: str,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * GIGABYTE,
) -> None:
    """Fill an empty folder.

    Args:
        folder: is there.
        reader: over a verified `model/`.
        config: the checkpoint's shape.
        tokenizer: that of the training data; the model has a row for each of its ids.
        tokenizer_files: that came with the weights, copied byte for byte; none: written so that transformers
            gives the ids of the training data.
        bos: whether the tokenizer puts BOS before a text; None: as its files say.
        card: text of README.md.
        dtype: of the weights; None: as they are stored.
        max_shard_bytes: of a weights file, unless a single tensor is larger.

    Raises:
        InputError: the tensors are not those of the shape.
        OSError: something could not be written.
    """
    _write_weights(reader, config, folder, dtype, max_shard_bytes)
    stored = dtype or reader.dtype(reader.keys()[0])
    _write_json(folder / "config.json", config_json(config, tokenizer, stored))
    # The pad token only here: in config.json it would freeze its row of the embedding in later training.
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if not tokenizer_files:
        tokenizer.write_for_transformers(folder, config.block_size, bos)
    for path in tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def config_json(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """Content of config.json."""
    return {
        **to_hf_config(config),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _write_weights(
    reader: TensorReader, config: ModelConfig, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    plan = list(_plan(reader, config, dtype))
    shards = list(split_into_files([spec for spec, _ in plan], max_shard_bytes))
    sources = {spec.name: source for spec, source in plan}
    bar = progress(description="weights", total=sum(spec.n_bytes for spec, _ in plan), unit="B")

    def rows_of(spec: TensorSpec) -> Iterator[Tensor]:
        source = sources[spec.name]
        n_rows = spec.shape[0]
        step = max(1, PIECE_BYTES * n_rows // max(spec.n_bytes, 1))
        for row in range(0, n_rows, step):
            rows = reader.read_rows(source.key, source.first_row + row, min(step, n_rows - row)).to(
                spec.dtype
            )
            bar.update(rows.nbytes)
            yield rows

    weight_map: dict[str, str] = {}
    with bar:
        for number, specs in enumerate(shards, start=1):
            name = (
                f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                if len(shards) > 1
                else "model.safetensors"
            )
            write_tensors(folder / name, specs, rows_of)
            weight_map |= {spec.name: name for spec in specs}
    if len(shards) > 1:
        total = sum(spec.n_bytes for spec, _ in plan)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _plan(
    reader: TensorReader, config: ModelConfig, dtype: torch.dtype | None
) -> Iterator[tuple[TensorSpec, _Source]]:
    """Every Hugging Face tensor and where it comes from, in the model's order."""
    shapes = parameter_shapes(config)
    stored = set(reader.keys())
    for key in sorted(stored ^ shapes.keys()):
        what = "is no parameter of this model" if key in stored else "is missing"
        raise InputError(f"{reader.folder}: {key} {what}")
    for key, shape in shapes.items():
        if reader.shape(key) != shape:
            raise InputError(f"{reader.folder}: {key} has shape {reader.shape(key)}, the model wants {shape}")
        rows, *rest = shape
        for part in hf_parts(key, config):
            first, last, _ = part.rows.indices(rows)
            spec = TensorSpec(part.hf_name, dtype or reader.dtype(key), (last - first, *rest))
            yield spec, _Source(key, first)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
