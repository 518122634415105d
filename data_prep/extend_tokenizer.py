"""Extend a BPE tokenizer by tokens of a new language: each new token stands for a row of old ids."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.tokenizing.extend import Options, extend_tokenizer
from lit_gpt.cli import run_command

if __name__ == "__main__":
    run_command(Options, extend_tokenizer)
