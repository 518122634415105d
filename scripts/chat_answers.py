#!/usr/bin/env python
"""Whether models answer in a chat template and end their turn: what tuning on conversations brings first."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import read_json
from lit_gpt.option_types import PositiveInt


@dataclass
class Options:
    """Ask models the last question of each conversation, and count the answers that end their turn.

    Greedy. An answer ends its turn if its first special token is the one that ends turns.
    """

    model: list[Path]
    """Hugging Face folders. All are asked in the chat template of the last one, also a base."""
    conversations: Path
    """JSON lines as data_prep/tokenize_chat.py reads them, with an answer at the end."""
    max_new_tokens: PositiveInt = 100
    """An answer that is longer has not ended its turn."""


def main(options: Options) -> None:
    """Print for each folder its count, and its answer to the first question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in options.model:
        read_json(folder / "config.json", f"--model {folder} is no Hugging Face folder")
    chat = options.model[-1]
    ends = read_json(chat / "generation_config.json", "give a folder of a chat model").get("eos_token_id")
    tokenizer = AutoTokenizer.from_pretrained(chat, trust_remote_code=False, padding_side="left")
    if tokenizer.chat_template is None or not isinstance(ends, list):
        raise InputError(f"--model {chat} has no chat template, or no token that ends turns")
    questions = _questions(options.conversations)
    batch = tokenizer.apply_chat_template(
        questions, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for folder in options.model:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        length = {"max_new_tokens": options.max_new_tokens, "eos_token_id": ends}
        with torch.no_grad():
            output = model.generate(**batch, do_sample=False, **length)
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        ended = [_cut(answer, special) for answer in answers]
        count = sum(answer[-1] == ends[-1] for answer in ended)
        print(f"{folder}: {count} of {len(answers)} answers end their turn")
        print(f"  {questions[0][-1]['content']}\n  {tokenizer.decode(ended[0])}", flush=True)


def _questions(path: Path) -> list[list[dict[str, str]]]:
    """The turns of each conversation before its last answer."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line)["messages"][:-1] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--conversations {path} cannot be read: {error!r}") from error
    if not questions or not all(questions):
        raise InputError(f"--conversations {path}: a conversation has no question, or there is none")
    return questions


def _cut(answer: list[int], special: set[int]) -> list[int]:
    """An answer up to its first special token; what follows is padding, or another turn."""
    return answer[: next((at for at, token in enumerate(answer) if token in special), len(answer)) + 1]


if __name__ == "__main__":
    run_command(Options, main)
