"""Weights from elsewhere -> a checkpoint that training can begin from (`--initial_checkpoint_dir`).

`HFSource` reads a Hugging Face folder; nothing in it is executed or unpickled.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import Manifest
from lit_gpt.checkpoint.tensor_files import (
    DTYPES,
    MAX_FILE_BYTES,
    TensorSpec,
    split_into_files,
    write_tensors,
)
from lit_gpt.cli import InputError, progress
from lit_gpt.files import new_folder, read_bounded, read_json
from lit_gpt.hashed_files import FileEntry, write_hashed
from lit_gpt.hf.mapping import from_hf_config, hf_parts
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HINT = "a Hugging Face model folder has it"
# Kept by old folders; RoPE's frequencies follow from config.json.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class HFSource:
    """The parameters of a Llama-shaped folder under our names, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Read config.json and the headers of the weights.

        Raises:
            InputError: a file is missing or unreadable, a tensor missing, unknown or of another shape than
                config.json says, or the model is of a kind that ours cannot be; the message names the key.
        """
        self.folder = folder
        self.config: ModelConfig = from_hf_config(read_json(folder / "config.json", _HINT), name=folder.name)
        self._files = self._find_tensors()
        self._dtypes: dict[str, torch.dtype] = {}
        self._check()

    @property
    def weight_files(self) -> set[str]:
        """Names of the files that hold tensors of the model."""
        return {path.name for path in self._files.values()}

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str) -> Iterator[Tensor]:
        """The tensors that one of our parameters is stacked from.

        Raises:
            InputError: one holds a value that is not finite.
        """
        return (self._read(part.hf_name) for part in hf_parts(name, self.config))

    def _find_tensors(self) -> dict[str, Path]:
        if (self.folder / INDEX).is_file():
            weight_map = read_json(self.folder / INDEX, _HINT).get("weight_map")
            if not isinstance(weight_map, dict):
                raise InputError(f"{self.folder / INDEX}: has no weight_map")
            names = weight_map
        elif (self.folder / SINGLE).is_file():
            with _open(self.folder / SINGLE) as file:
                names = dict.fromkeys(file.keys(), SINGLE)
        else:
            pickled = next(iter(sorted(self.folder.glob("*.bin"))), None)
            hint = f"; {pickled.name} is a pickle and is not opened" if pickled else ""
            raise InputError(f"{self.folder}: has no weights in {SINGLE} or {INDEX}{hint}")
        for key, name in names.items():
            if not re.fullmatch(r"[\w.-]+\.safetensors", str(name)) or not (self.folder / name).is_file():
                raise InputError(
                    f"{self.folder / INDEX}: {key} is in {str(name)[:99]!r}, which is not a file here"
                )
        for name in sorted(set(names.values())):
            self._check_names(name, {key for key, where in names.items() if where == name})
        return {key: self.folder / name for key, name in names.items()}

    def _check_names(self, name: str, keys: set[str]) -> None:
        """Whether a weight file holds exactly the tensors that the index names for it."""
        path = self.folder / name
        with _open(path) as file:
            found = set(file.keys())
        if missing := keys - found:
            raise InputError(f"{path}: {min(missing)} is not in it, though {INDEX} says so")
        if extra := found - keys:
            raise InputError(f"{path}: {min(extra)} is a tensor that {INDEX} does not name for it")

    def _check(self) -> None:
        unknown = {key for key in self._files if not _DERIVED.fullmatch(key)}
        if self.config.tie_embeddings:
            unknown.discard("lm_head.weight")
        for name, shape in parameter_shapes(self.config).items():
            for part in hf_parts(name, self.config):
                unknown.discard(part.hf_name)
                rows = len(range(*part.rows.indices(shape[0])))
                dtype = self._check_tensor(part.hf_name, (rows, *shape[1:]), self._dtypes.get(name))
                self._dtypes[name] = dtype
        if unknown:
            key = min(unknown)
            raise InputError(f"{self._files[key]}: {key} is a tensor that this model does not have")

    def _check_tensor(self, key: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.dtype:
        if key not in self._files:
            raise InputError(f"{self.folder}: {key} is missing from the weights")
        path = self._files[key]
        with _open(path) as file:
            header = file.get_slice(key)
            found, found_dtype = tuple(header.get_shape()), DTYPES.get(header.get_dtype())
        if found != shape:
            raise InputError(f"{path}: {key} has shape {found}, config.json wants {shape}")
        if found_dtype is None or not found_dtype.is_floating_point:
            raise InputError(f"{path}: {key} is {header.get_dtype()}; quantised weights are not supported")
        if dtype not in (None, found_dtype):
            raise InputError(f"{path}: {key} is {found_dtype}, but what it is stacked with is {dtype}")
        return found_dtype

    def _read(self, key: str) -> Tensor:
        with _open(self._files[key]) as file:
            tensor = file.get_tensor(key)
        smallest, largest = tensor.aminmax()  # both NaN if one of the values is
        if not (smallest.isfinite() and largest.isfinite()):
            raise InputError(f"{self._files[key]}: {key} holds NaN or infinite values; get other weights")
        return tensor


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no readable safetensors file: {error}") from error


class Source(Protocol):
    """Weights under our names; `read` gives one complete, or some rows at a time."""

    config: ModelConfig

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor | Iterable[Tensor]: ...


def write_initial_checkpoint(
    source: Source,
    output: Path,
    origin: str,
    tokenizer_files: Iterable[Path] = (),
    extension: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder of step 0, one tensor in memory at a time.

    Args:
        source: gives every parameter.
        output: does not exist yet.
        origin: where the weights are from, kept in state.json.
        tokenizer_files: taken along byte for byte, so that the way back needs nothing else.
        extension: what is recorded of an extended vocabulary, `base` and `first_new_id`.

    Raises:
        InputError: `output` exists, or it cannot be written, as when the disk is full; nothing is left.
    """
    with new_folder(output) as temporary:
        (temporary / "model").mkdir()
        files = _copy_tokenizer(tokenizer_files, temporary) | _write_weights(source, temporary)
        state = {
            "step": 0,
            "tokens": 0,
            "model": {name: value for name, value in source.config.to_dict().items() if name != "name"},
            "options": {"model_name": source.config.name},
            "origin": origin,
        }
        if extension is not None:
            state["extension"] = dict(extension)
        files[checkpoint.STATE] = checkpoint.write_state(temporary, state)
        checkpoint.seal(temporary, Manifest(0, 1, "full", files))


def _copy_tokenizer(paths: Iterable[Path], folder: Path) -> dict[str, FileEntry]:
    written = {}
    for path in paths:
        name = f"tokenizer/{path.name}"
        (folder / name).parent.mkdir(exist_ok=True)
        written[name] = write_hashed(folder / name, read_bounded(path))
    return written


def _write_weights(source: Source, folder: Path) -> dict[str, FileEntry]:
    shapes = parameter_shapes(source.config)
    specs = [TensorSpec(name, source.dtype(name), shape) for name, shape in shapes.items()]
    written = {}
    with progress(description="weights", total=sum(spec.n_bytes for spec in specs), unit="B") as bar:

        def body(spec: TensorSpec) -> Tensor | Iterable[Tensor]:
            bar.update(spec.n_bytes)
            return source.read(spec.name)

        for number, group in enumerate(split_into_files(specs, MAX_FILE_BYTES)):
            name = f"model/weights-{number:05d}.safetensors"
            written[name] = write_tensors(folder / name, group, body)
    return written
