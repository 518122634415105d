#!/usr/bin/env python
"""A `.pth` file of TinyLlama, lit-gpt or the first LLäMmlein -> a checkpoint that training can begin from."""

import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import open_regular
from lit_gpt.hf.importer import write_initial_checkpoint
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import clean_name, parameter_shapes

# Other names of our parameters; the first that exists is taken.
_OTHER_NAMES = {
    "attn.qkv.weight": ("attn.attn.weight",),
    "mlp.fc_1.weight": ("mlp.swiglu.w1.weight", "mlp.w1.weight"),
    "mlp.fc_2.weight": ("mlp.swiglu.w2.weight", "mlp.w2.weight"),
    "mlp.proj.weight": ("mlp.swiglu.w3.weight", "mlp.w3.weight"),
}


@dataclass
class ConvertOriginalOptions:
    """Turn a state dict in lit-gpt's names into a checkpoint in this project's format.

    The file may be a bare state dict or a trainer's full state, of which only the weights are used. It is
    read with torch's restricted unpickler, which makes tensors and plain values and runs nothing.
    """

    checkpoint: Path
    """The `.pth` file."""
    model_name: str
    """Shape of the model, as for training; the vocabulary's size is taken from the file."""
    output: Path
    """Checkpoint folder to write; must not exist."""


class OriginalSource:
    """The parameters of such a file under our names."""

    def __init__(self, path: Path, model_name: str) -> None:
        """
        Raises:
            InputError: the file is no such checkpoint, or not of this shape; the message names the tensor.
        """
        content = _load(path)
        weights = content.get("model", content)
        if not isinstance(weights, Mapping) or not all(
            isinstance(value, Tensor) for value in weights.values()
        ):
            raise InputError(f"{path}: holds no state dict, neither at the top nor under 'model'")
        self.tensors = {clean_name(name.removeprefix("module.")): value for name, value in weights.items()}
        embedding = self.tensors.get("transformer.wte.weight")
        if embedding is None:
            first = next(iter(self.tensors), "nothing")
            raise InputError(f"{path}: transformer.wte.weight is missing; the first tensor is {first}")
        self.config: ModelConfig = ModelConfig.load(model_name, vocab_size=embedding.shape[0])
        self._names = self._match(path)
        counts = [f"{key} {content[key]}" for key in ("iter_num", "step_count") if key in content]
        self.origin = ", ".join([path.name, *counts])

    def dtype(self, name: str) -> torch.dtype:
        """Of one of our parameters."""
        return self.tensors[self._names[name]].dtype

    def read(self, name: str) -> Tensor:
        """One of our parameters."""
        tensor = self.tensors[self._names[name]]
        return self._regroup(tensor) if self._names[name].endswith("attn.attn.weight") else tensor

    def _match(self, path: Path) -> dict[str, str]:
        """Our names to the file's."""
        names = {}
        for name, shape in parameter_shapes(self.config).items():
            found = next((other for other in _names(name) if other in self.tensors), None)
            if found is None:
                raise InputError(f"{path}: {' or '.join(_names(name))} is missing")
            if (found_shape := tuple(self.tensors[found].shape)) != shape:
                raise InputError(f"{path}: {found} has shape {found_shape}, {self.config.name} wants {shape}")
            names[name] = found
        if unknown := sorted(self.tensors.keys() - names.values()):
            raise InputError(f"{path}: {unknown[0]} is a tensor that {self.config.name} does not have")
        return names

    def _regroup(self, qkv: Tensor) -> Tensor:
        """Rows in which each group has its queries, key and value together -> all queries, keys, values."""
        groups, width = self.config.n_query_groups, self.config.head_dim
        grouped = qkv.view(groups, -1, width, qkv.shape[-1])
        queries, keys, values = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return torch.cat([part.reshape(-1, qkv.shape[-1]) for part in (queries, keys, values)])


def main(options: ConvertOriginalOptions) -> None:
    """Convert, and say how training begins from it."""
    source = OriginalSource(options.checkpoint, options.model_name)
    write_initial_checkpoint(source, options.output, origin=source.origin)
    print(
        f"{options.output}: {source.config.n_parameters:,} parameters. Train with "
        f"--model_name {options.output} --initial_checkpoint_dir {options.output}"
    )


def _names(name: str) -> list[str]:
    """The possible names of one of our parameters."""
    return [name] + [
        name.removesuffix(ours) + other
        for ours, others in _OTHER_NAMES.items()
        if name.endswith(ours)
        for other in others
    ]


def _load(path: Path) -> Mapping:
    try:
        with open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path}: no zip file, as torch.save has written since version 1.6")
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"--checkpoint {path}: no such file") from None
    except UnpicklingError as error:
        # The rest of torch's message says how to run the code nevertheless.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise InputError(
            f"{path}: holds more than tensors and plain values{what}, and is not opened, since that may run "
            "code; save the state dict alone where the file was made"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not readable by torch.load: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds no state dict but a {type(content).__name__}")
    return content


if __name__ == "__main__":
    run_command(ConvertOriginalOptions, main)
