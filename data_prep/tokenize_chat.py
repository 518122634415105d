"""Tokenize conversations into a masked token store, to fine-tune a model as a chat model.

Killed at any moment and started again with the same flags, it continues and leaves the same bytes as a run
that was never stopped, for any number of workers. If the store is finished, it does nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.tokenizing.chat import ChatOptions, tokenize_chat
from lit_gpt.cli import run_command

if __name__ == "__main__":
    run_command(ChatOptions, tokenize_chat)
