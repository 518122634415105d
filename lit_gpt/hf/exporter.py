"""Write a Hugging Face model folder from a checkpoint, some rows in memory at a time.

config.json  generation_config.json  README.md        what it is
model-00001-of-00002.safetensors ...  .index.json      weights (one model.safetensors if they fit)
tokenizer.json  tokenizer_config.json  ...             as the data was tokenized
chat_template.jinja                                    of conversations, where it was trained on some
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoint.tensor_files import TensorReader, TensorSpec, split_into_files, write_tensors
from lit_gpt.cli import InputError, progress
from lit_gpt.files import read_json
from lit_gpt.hf.mapping import hf_parts, to_hf_config
from lit_gpt.hf.model_card import model_card
from lit_gpt.hf.trained_model import TrainedModel
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.tokenizer import Tokenizer

GIGABYTE = 10**9
# Read and written at a time: stays in a core's cache between the two. 16 MB took three times as long.
CHUNK_BYTES = 1 << 20


def write_hf_folder(
    folder: Path,
    source: TrainedModel,
    losses: Mapping[str, float | None],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * GIGABYTE,
) -> None:
    """Fill an empty folder.

    Args:
        folder: Exists.
        source: Its tokenizer's files are copied byte for byte where they came with the weights, else written
            so that transformers gives the ids of the training data.
        losses: By name, for README.md; those that are None are left out.
        dtype: Of the weights; None: as they are stored.
        max_shard_bytes: Of a weights file, unless a single tensor is larger.

    Raises:
        InputError: the tensors are not those of the shape.
        OSError: something could not be written.
    """
    config, tokenizer = source.config, source.tokenizer
    _write_weights(source.reader, config, folder, dtype, max_shard_bytes)
    stored = dtype or source.reader.dtype(source.reader.keys()[0])
    write_json(folder / "config.json", config_json(config, tokenizer, stored))
    write_tokenizer(folder, source)
    write_json(folder / "generation_config.json", generation_json(source))
    card = model_card(config, source.state, losses, source.bos)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tokenizer(folder: Path, source: TrainedModel) -> None:
    """Write the tokenizer's files, and the template of the conversations that the model was trained on."""
    if not source.tokenizer_files:
        source.tokenizer.write_for_transformers(folder, source.config.block_size, source.bos)
    for path in source.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
        path = folder / "tokenizer_config.json"
        tokenizer_config = read_json(path, "copy it again")
        # An older template, which llama.cpp takes before the file, transformers after it.
        if tokenizer_config.pop("chat_template", None) is not None:
            write_json(path, tokenizer_config)


def generation_json(source: TrainedModel) -> dict[str, Any]:
    """The pad token only here: in config.json it would freeze its row of the embedding in later training."""
    tokenizer, ends = source.tokenizer, source.end_ids
    of_chat = len(ends) > 1
    return {
        **({} if of_chat else {"_from_model_config": True}),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if of_chat else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def config_json(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
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
    places = dict(_plan(reader, config, dtype))

    def rows_of(spec: TensorSpec, first: int, n_rows: int) -> Tensor:
        key, first_row = places[spec]
        return reader.read_rows(key, first_row + first, n_rows).to(spec.dtype)

    write_weights(folder, list(places), rows_of, max_shard_bytes)


def write_weights(
    folder: Path,
    specs: Sequence[TensorSpec],
    rows_of: Callable[[TensorSpec, int, int], Tensor],
    max_shard_bytes: int,
) -> None:
    """Write model.safetensors, or shards and last their index.

    Args:
        folder: Exists.
        rows_of: Gives (spec, first row, number of rows) of a tensor, in the dtype of the spec.
        max_shard_bytes: Of a file, unless a single tensor is larger.

    Raises:
        OSError: a file could not be written.
    """
    shards = list(split_into_files(specs, max_shard_bytes))
    total = sum(spec.n_bytes for spec in specs)
    bar = progress(description="weights", total=total, unit="B")

    def body(spec: TensorSpec) -> Iterator[Tensor]:
        for first, n_rows in row_ranges(spec):
            rows = rows_of(spec, first, n_rows)
            bar.update(rows.nbytes)
            yield rows

    weight_map: dict[str, str] = {}
    with bar:
        for number, group in enumerate(shards, start=1):
            name = (
                f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                if len(shards) > 1
                else "model.safetensors"
            )
            write_tensors(folder / name, group, body)
            weight_map |= {spec.name: name for spec in group}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def row_ranges(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of the parts in which a tensor is read and written."""
    n_rows = spec.shape[0]
    step = max(1, CHUNK_BYTES * n_rows // max(spec.n_bytes, 1))
    return ((row, min(step, n_rows - row)) for row in range(0, n_rows, step))


def _plan(
    reader: TensorReader, config: ModelConfig, dtype: torch.dtype | None
) -> Iterator[tuple[TensorSpec, tuple[str, int]]]:
    """Every Hugging Face tensor, in the model's order, and (our tensor, its first row there)."""
    shapes = parameter_shapes(config)
    stored = set(reader.keys())
    for key in sorted(stored ^ shapes.keys()):
        what = "is not a parameter of this model" if key in stored else "is missing"
        raise InputError(f"{reader.folder}: {key} {what}")
    for key, shape in shapes.items():
        if reader.shape(key) != shape:
            raise InputError(f"{reader.folder}: {key} has shape {reader.shape(key)}, the model wants {shape}")
        rows, *rest = shape
        for part in hf_parts(key, config):
            first, last, _ = part.rows.indices(rows)
            spec = TensorSpec(part.hf_name, dtype or reader.dtype(key), (last - first, *rest))
            yield spec, (key, first)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
