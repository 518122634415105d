#!/usr/bin/env python
"""Text from a model: a Hugging Face folder or a checkpoint of the trainer."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.checkpoint.folder import MANIFEST
from lit_gpt.cli import InputError, run_command
from lit_gpt.hf.exporter import config_json
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.hf.trained_model import open_checkpoint
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.option_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from lit_gpt.store.tokenizer import adds_bos

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@dataclass
class GenerateOptions:
    """Continue a prompt and print the text as it comes."""

    model: Path
    """Hugging Face folder, or a checkpoint folder OUT/iter-00000100-ckpt.pth."""
    prompt: str
    """Text to continue; `-` reads it from standard input."""
    tokenizer_path: Path | None = None
    """For a checkpoint whose token store has moved."""
    max_new_tokens: PositiveInt = 100
    """Most tokens to add."""
    temperature: NonNegativeFloat = 0.8
    """0 always takes the likeliest token."""
    top_k: NonNegativeInt = 50
    """Draw from this many of the likeliest tokens; 0: from all."""
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1 makes tokens that were there already less likely."""
    seed: int = 0
    """Of the draws."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat template, as a user's turn."""


def main(options: GenerateOptions) -> None:
    """Load, and stream the continuation to standard output."""
    from transformers import TextStreamer

    if not options.model.is_dir():
        raise InputError(f"--model {options.model}: no such folder")
    is_checkpoint = (options.model / MANIFEST).is_file()
    model, tokenizer = _load_checkpoint(options) if is_checkpoint else _load_folder(options.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    ids = _prompt_ids(tokenizer, options).to(device)
    if int(ids.max()) >= (rows := model.get_input_embeddings().num_embeddings):
        raise InputError(
            f"--model {options.model}: its tokenizer gives ids beyond the {rows} of its vocabulary"
        )
    torch.manual_seed(options.seed)
    sampling = {}
    if options.temperature > 0:
        sampling = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.max_new_tokens,
        do_sample=options.temperature > 0,
        repetition_penalty=options.repetition_penalty,
        pad_token_id=model.config.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        **sampling,
    )


def _load_folder(folder: Path) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise InputError(f"--model {folder}: neither a Hugging Face folder (config.json) nor a checkpoint")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a malformed folder makes transformers and tokenizers raise anything
        raise InputError(f"--model {folder} does not load: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(loaded["missing_keys"]):  # transformers draws them at random
        raise InputError(f"--model {folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    return model, tokenizer


def _load_checkpoint(options: GenerateOptions) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = open_checkpoint(options.model, options.tokenizer_path)
    reader, config, tokenizer = source.reader, source.config, source.tokenizer
    shapes = parameter_shapes(config)
    weights = {
        part.hf_name: reader.read(name)[part.rows] for name in shapes for part in hf_parts(name, config)
    }
    fields = config_json(config, tokenizer, reader.dtype("transformer.wte.weight"))
    model = LlamaForCausalLM.from_pretrained(None, config=LlamaConfig(**fields), state_dict=weights)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.write_for_transformers(Path(folder), config.block_size, source.bos)
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", options: GenerateOptions) -> torch.Tensor:
    """(1, T) token ids: the beginning of a document, or a user's turn."""
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not options.chat:
        bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        ids = bos + tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise InputError("--prompt: empty, and the tokenizer puts no token before a text")
        return torch.tensor([ids])
    if tokenizer.chat_template is None:
        raise InputError(f"--chat: the tokenizer of {options.model} has no chat template")
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


if __name__ == "__main__":
    run_command(GenerateOptions, main)
