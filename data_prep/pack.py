"""Pack a token store's documents into rows ahead of time.

Training packs a store that has no packing. For a large store, pack before a cluster has to wait for it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.tokenizing.job import PackOptions, pack
from lit_gpt.cli import run_command

if __name__ == "__main__":
    run_command(PackOptions, pack)
