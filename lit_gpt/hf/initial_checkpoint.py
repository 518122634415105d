"""A checkpoint that holds weights only: what training can begin from (`--initial_checkpoint_dir`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import Manifest
from lit_gpt.checkpoint.tensor_files import MAX_FILE_BYTES, TensorSpec, split_into_files, write_tensors
from lit_gpt.cli import InputError, progress
from lit_gpt.files import new_folder, read_bounded
from lit_gpt.hashed_files import FileEntry, write_hashed
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import REQUIRED_FILES, Tokenizer


class Source(Protocol):
    """Where the weights come from, by our names; `read` gives one whole, or some rows after the others."""

    config: ModelConfig

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor | Iterable[Tensor]: ...


def write_initial_checkpoint(
    source: Source, output: Path, origin: str, tokenizer_files: Iterable[Path] = ()
) -> None:
    """Write a checkpoint folder of step 0, one tensor in memory at a time, whole or not there at all.

    Args:
        source: gives every parameter.
        output: does not exist yet.
        origin: where the weights are from, kept in state.json.
        tokenizer_files: taken along byte for byte, so that the way back needs nothing else.

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
        files[checkpoint.STATE] = checkpoint.write_state(temporary, state)
        checkpoint.seal(temporary, Manifest(0, 1, "full", files))


def check_tokenizer(folder: Path, store: TokenStore) -> None:
    """Compare the tokenizer of a checkpoint's weights with that of a token store, where both are known.

    A checkpoint of the trainer has the fingerprint; one converted from Hugging Face may have the files.

    Raises:
        InputError: they differ, so that every id would mean another token; names both. Or the checkpoint is
            damaged.
    """
    fingerprint, carried = checkpoint.read_state(folder).get("tokenizer"), folder / "tokenizer"
    if fingerprint == store.manifest.tokenizer:
        return
    where = f"fingerprint {fingerprint[:12]}" if fingerprint else ""
    if fingerprint is None:
        if not all((carried / name).is_file() for name in REQUIRED_FILES):
            return
        tokenizers = (
            Tokenizer.load(place, cache_words=False) for place in (carried, store.path / "tokenizer")
        )
        if len({tokenizer.ids_fingerprint for tokenizer in tokenizers}) == 1:
            return
        where = str(carried)
    raise InputError(
        f"the weights in {folder} were trained with another tokenizer ({where}) than the data: "
        f"{store.path / 'tokenizer'} ({store.manifest.tokenizer[:12]}); tokenize the data with theirs"
    )


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
