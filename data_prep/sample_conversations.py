"""Write sample conversations in German, to try chat out: questions and answers of several turns.

They are drawn with a seed from sample_passages/conversations/, by the rules of passages.py. Half of the
templates begin with a system prompt.
"""

import json
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.passages import documents, load_conversations
from lit_gpt.cli import run_command
from lit_gpt.files import replacing
from lit_gpt.option_types import PositiveInt

TURN = re.compile(r"^(system|user|assistant): ", re.MULTILINE)


@dataclass
class Options:
    """Write sample conversations in German, as tokenize_chat.py reads them."""

    output: Path
    """JSON lines file to write, of `{"id": ..., "messages": [{"role": ..., "content": ...}, ...]}`."""
    documents: PositiveInt = 2000
    """Number of conversations."""
    seed: int = 1
    """The same seed gives the same bytes."""


def main(options: Options) -> None:
    """Write the file atomically.

    Raises:
        InputError: the passages do not give that many conversations.
    """
    options.output.parent.mkdir(parents=True, exist_ok=True)
    n_bytes = 0
    with replacing(options.output) as file:
        drawn = islice(documents(options.seed, load_conversations()), options.documents)
        for number, (register, text) in enumerate(drawn):
            record = {"id": f"gespraech-{register}-{number:05d}", "messages": messages(text)}
            n_bytes += file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    print(f"{options.output}: {options.documents:,} conversations, {n_bytes / 1e6:.1f} MB")


def messages(text: str) -> list[dict[str, str]]:
    """The turns of a text in which `ROLE: ` at the beginning of a line begins one."""
    _, *parts = TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": role, "content": content.strip()} for role, content in turns]


if __name__ == "__main__":
    run_command(Options, main)
