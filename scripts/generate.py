#!/usr/bin/env python
"""Text from a model: a Hugging Face folder or a checkpoint of the trainer."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.checkpoint import MANIFEST
from lit_gpt.cli import InputError, run_command
from scripts.convert_lit_checkpoint import ConvertOptions, convert


@dataclass
class GenerateOptions:
    """Continue a prompt and print the text as it comes."""

    model: Path
    """Hugging Face folder, or a checkpoint folder OUT/iter-00000100-ckpt.pth."""
    prompt: str
    """Text to continue; `-` reads it from standard input."""
    tokenizer_path: Path | None = None
    """For a checkpoint whose token store has moved."""
    max_new_tokens: int = 100
    """Most tokens to add."""
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were there already less likely."""
    seed: int = 0
    """Of the draws."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat template, as a user's turn."""


def main(options: GenerateOptions) -> None:
    """Load and generate."""
    if not options.model.is_dir():
        raise InputError(f"--model {options.model}: no such folder")
    if not (options.model / MANIFEST).is_file():
        return generate(options.model, options)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model"
        convert(ConvertOptions(options.model, converted, options.tokenizer_path))
        generate(converted, options)


def generate(folder: Path, options: GenerateOptions) -> None:
    """Stream the continuation to standard output."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

    if not (folder / "config.json").is_file():
        raise InputError(f"--model {folder}: neither a Hugging Face folder (config.json) nor a checkpoint")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"--model {folder} does not load: {' '.join(str(error).split())[:300]}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    ids = _prompt_ids(tokenizer, options).to(device)
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


def _prompt_ids(tokenizer: object, options: GenerateOptions) -> torch.Tensor:
    """(1, T) token ids: the beginning of a document, or a user's turn."""
    from transformers import PreTrainedTokenizerBase

    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if options.chat:
        if tokenizer.chat_template is None:
            raise InputError(f"--chat: the tokenizer of {options.model} has no chat template")
        turns = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return encoded["input_ids"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([[tokenizer.bos_token_id, *ids]])


if __name__ == "__main__":
    run_command(GenerateOptions, main)
