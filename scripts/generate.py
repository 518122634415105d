#!/usr/bin/env python
"""Text from a model, or a conversation with one: a Hugging Face folder or a checkpoint of the trainer."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.checkpoint.folder import MANIFEST
from lit_gpt.cli import InputError, run_command
from lit_gpt.hf.conversation import Conversation
from lit_gpt.hf.exporter import config_json, generation_json, write_tokenizer
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.hf.trained_model import open_checkpoint
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.option_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from lit_gpt.store.tokenizer import adds_bos

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@dataclass
class GenerateOptions:
    """Continue a prompt and print the text as it comes; with --chat, answer in a conversation."""

    model: Path
    """Hugging Face folder, or a checkpoint folder OUT/iter-00000100-ckpt.pth."""
    prompt: str | None = None
    """Text to continue, or with --chat the first turn; `-` reads it from standard input. Without it, --chat
    takes each line of standard input as a turn."""
    tokenizer_path: Path | None = None
    """For a checkpoint whose token store has moved."""
    max_new_tokens: PositiveInt = 100
    """Most tokens to add, with --chat to each answer."""
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
    """Converse in the model's chat template, turn by turn until the end of input (Ctrl-D). The oldest turns
    are left out when the model has no positions left for them."""
    system: str | None = None
    """With --chat: what the system's turn says."""


def main(options: GenerateOptions) -> None:
    """Load, and stream the continuation or the answers to standard output."""
    if not options.model.is_dir():
        raise InputError(f"--model {options.model}: no such folder")
    if options.prompt is None and not options.chat:
        raise InputError("--prompt is missing: the text to continue; or converse with --chat")
    if options.system is not None and not options.chat:
        raise InputError("--system is a turn of a conversation: give it with --chat")
    is_checkpoint = (options.model / MANIFEST).is_file()
    if options.tokenizer_path is not None and not is_checkpoint:
        raise InputError(f"--tokenizer_path is for checkpoints: {options.model} has its own tokenizer")
    model, tokenizer = _load_checkpoint(options) if is_checkpoint else _load_folder(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    torch.manual_seed(options.seed)
    try:
        if options.chat:
            converse(model, tokenizer, options)
        else:
            stream(model, tokenizer, _prompt_ids(tokenizer, _first_text(options)), options)
    except UnicodeError as error:
        raise InputError(f"the text is not UTF-8: {error}") from error


def stream(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    ids: list[int],
    options: GenerateOptions,
    skip_prompt: bool = False,
) -> list[int]:
    """Print the continuation of `ids` as it comes, without special tokens; return what was added."""
    from transformers import TextStreamer

    if max(ids) >= (rows := model.get_input_embeddings().num_embeddings):
        raise InputError(
            f"--model {options.model}: its tokenizer gives ids beyond the {rows} of its vocabulary"
        )
    sampling = {}
    if options.temperature > 0:
        sampling = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    prompt = torch.tensor([ids], device=model.device)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=options.max_new_tokens,
        do_sample=options.temperature > 0,
        repetition_penalty=options.repetition_penalty,
        pad_token_id=next(iter(_end_ids(model)), None),
        streamer=TextStreamer(tokenizer, skip_prompt, skip_special_tokens=True),
        **sampling,
    )
    return output[0, len(ids) :].tolist()


def converse(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", options: GenerateOptions
) -> None:
    """Answer turn by turn.

    Raises:
        InputError: there is no chat template, or a turn cannot be asked. One that is typed is only told.
    """
    if tokenizer.chat_template is None:
        raise InputError(f"--chat: the tokenizer of {options.model} has no chat template")
    positions = model.config.max_position_embeddings
    conversation = Conversation(tokenizer, positions, options.system)
    for text in _turns(options):
        try:
            ids, left_out = conversation.ask(text, options.max_new_tokens)
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            _note(str(error))  # the next turn is asked for
            continue
        if left_out:
            _note(f"the model has {positions:,} positions; exchanges left out, the oldest first: {left_out}")
        room = min(options.max_new_tokens, positions - len(ids))
        added = stream(model, tokenizer, ids, replace(options, max_new_tokens=room), skip_prompt=True)
        if len(added) == room and added[-1] not in _end_ids(model):
            _note(f"cut after {room} tokens (--max_new_tokens {options.max_new_tokens})")
        conversation.answer(tokenizer.decode(added, skip_special_tokens=True))


def _turns(options: GenerateOptions) -> Iterator[str]:
    """The prompt, and the lines of standard input: after a prompt only those that are typed."""
    typed = sys.stdin.isatty()
    if typed:
        with suppress(ImportError):  # not in every Python
            import readline  # noqa: F401  # `input` lets a line be edited then
    if options.prompt is not None:
        yield _first_text(options)
        if not typed:
            return
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            break
        if line.strip():
            yield _checked(line)
    if typed:
        print()  # below the sign


def _first_text(options: GenerateOptions) -> str:
    return _checked(sys.stdin.read() if options.prompt == "-" else options.prompt or "")


def _checked(text: str) -> str:
    """Raises UnicodeError for what Python lets pass in some locales: bytes that are not UTF-8."""
    text.encode()
    return text


def _end_ids(model: "LlamaForCausalLM") -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


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
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = open_checkpoint(options.model, options.tokenizer_path)
    reader, config = source.reader, source.config
    weights = {
        part.hf_name: reader.read(name)[part.rows]
        for name in parameter_shapes(config)
        for part in hf_parts(name, config)
    }
    fields = config_json(config, source.tokenizer, reader.dtype("transformer.wte.weight"))
    model = LlamaForCausalLM.from_pretrained(None, config=LlamaConfig(**fields), state_dict=weights)
    model.generation_config = GenerationConfig(**generation_json(source))
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), source)
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The beginning of a document."""
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    ids = bos + tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise InputError("--prompt: empty, and the tokenizer puts no token before a text")
    return ids


if __name__ == "__main__":
    run_command(GenerateOptions, main)
