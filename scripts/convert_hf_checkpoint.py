#!/usr/bin/env python
"""A Hugging Face folder of a Llama or Mistral -> a checkpoint that training can begin from."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, run_command
from lit_gpt.hf.extended_vocabulary import EmbeddingInit, ExtendedSource
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
    extension: Path | None = None
    """What data_prep/extend_tokenizer.py made of the folder's tokenizer: the checkpoint gets this one, and
    rows for its new tokens. Export a checkpoint of the trainer first (convert_lit_checkpoint.py)."""
    embedding_init: EmbeddingInit = "eeve"
    """How the rows of a new token begin. eeve: in the embedding as the mean of the tokens that the base
    writes it with, in the head as the first of them; mean: as their mean in both."""


def main(options: ConvertHFOptions) -> None:
    """Convert, and say how training begins from it."""
    if not options.hf_dir.is_dir():
        raise InputError(f"--hf_dir {options.hf_dir}: no such folder")
    base, tokenizer = HFSource(options.hf_dir), options.extension or options.hf_dir
    origin, files = f"Hugging Face folder {options.hf_dir.name}", files_in(tokenizer)
    if options.extension is None:
        config = base.config
        write_initial_checkpoint(base, options.output, origin, files)
    else:
        source = ExtendedSource(base, tokenizer, options.embedding_init)
        config, origin = source.config, f"{origin}, vocabulary extended ({options.embedding_init})"
        write_initial_checkpoint(source, options.output, origin, files, source.extension)
    print(
        f"{options.output}: {config.n_parameters:,} parameters. Tokenize with --tokenizer "
        f"{tokenizer} and train with --model_name {options.output} "
        f"--initial_checkpoint_dir {options.output}"
    )


if __name__ == "__main__":
    run_command(ConvertHFOptions, main)
