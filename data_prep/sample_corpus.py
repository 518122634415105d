"""Write the sample corpus: German documents from the passages in sample_passages/, drawn with a seed."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.passages import PASSAGES, documents, load_registers
from lit_gpt.cli import run_command
from lit_gpt.files import replacing
from lit_gpt.option_types import PositiveFloat


@dataclass
class Options:
    """Write German sample documents, made from hand-written passages."""

    output: Path
    """JSON lines file to write."""
    megabytes: PositiveFloat = 4.0
    """Text to write, in 10^6 bytes."""
    seed: int = 1
    """The same seed gives the same bytes."""


def main(options: Options) -> None:
    """Write the file atomically.

    Raises:
        InputError: the passages do not give that much text.
    """
    options.output.parent.mkdir(parents=True, exist_ok=True)
    left = options.megabytes * 1e6
    count = 0
    with replacing(options.output) as file:
        for register, text in documents(options.seed, load_registers(PASSAGES)):
            line = json.dumps({"id": f"{register}-{count:05d}", "text": text}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
            count += 1
            left -= len(text.encode())
            if left <= 0:
                break
    print(f"{options.output}: {count} documents, {options.megabytes - left / 1e6:.1f} MB of text")


if __name__ == "__main__":
    run_command(Options, main)
