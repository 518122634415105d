#!/usr/bin/env python
"""A Hugging Face folder of a Llama or Mistral -> a checkpoint that training can begin from."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, run_command
from lit_gpt.hf.importer import HFSource, write_initial_checkpoint
from lit_gpt.store.tokenizer import files_in


@dataclass
class ConvertHFOptions:
    """Turn a Hugging Face folder (safetensors) into a checkpoint in this project's format.

    The checkpoint carries the folder's tokenizer along. The weights keep their dtype.
    Nothing in the folder is executed: no pickle is opened, code that it names (auto_map) is not run.
    """

    hf_dir: Path
    """Folder with config.json and model.safetensors or its shards."""
    output: Path
    """Checkpoint folder to write; must not exist."""


def main(options: ConvertHFOptions) -> None:
    """Convert, and say how training begins from it."""
    if not options.hf_dir.is_dir():
        raise InputError(f"--hf_dir {options.hf_dir}: no such folder")
    source = HFSource(options.hf_dir)
    origin = f"Hugging Face folder {options.hf_dir.name}"
    write_initial_checkpoint(source, options.output, origin, files_in(options.hf_dir))
    print(
        f"{options.output}: {source.config.n_parameters:,} parameters. Tokenize with --tokenizer "
        f"{options.hf_dir} and train with --model_name {options.output} "
        f"--initial_checkpoint_dir {options.output}"
    )


if __name__ == "__main__":
    run_command(ConvertHFOptions, main)
