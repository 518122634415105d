"""Train a BPE tokenizer, byte-level or by SentencePiece, that encodes every text without loss."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.tokenizing.train import Options, train_tokenizer
from lit_gpt.cli import run_command

if __name__ == "__main__":
    run_command(Options, train_tokenizer)
