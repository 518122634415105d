"""Pack a token store's documents into rows ahead of time.

Training does the same when it finds no packing; a large store is better packed before a cluster waits for it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveInt
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore


@dataclass
class Options:
    """Pack a token store's documents into rows, and check the result against the store."""

    store: Path
    """Folder of the token store."""
    block_size: PositiveInt = 2048
    """Predictions in a row; the block_size of the training."""
    strategy: Literal["best_fit", "concat", "one_per_row"] = "best_fit"
    """How documents are laid into rows."""
    packing_dir: Path | None = None
    """Where to keep the packing; by default in the store."""


def main(options: Options) -> None:
    store = TokenStore.open(options.store)
    packed = PackedStore.open(store, options.block_size, options.strategy, options.packing_dir)
    packed.verify()
    rows = int(packed.rows_per_shard.sum())
    pieces = sum(shard.pieces for shard in packed.shards)
    cut = sum(shard.cut_documents for shard in packed.shards)
    print(f"packing      {packed.folder}")
    print(f"rows         {rows:,} of {options.block_size:,} predictions")
    print(f"waste        {packed.waste:.4%} of slots")
    print(f"pieces       {pieces:,}, {pieces / max(1, rows):.2f} a row")
    print(f"cut          {cut:,} of {store.n_documents:,} documents")
    print(
        f"checks       each of {packed.n_targets:,} predictions is in one row; {rows:,} row checksums agree"
    )
    print(f"fingerprint  {packed.fingerprint}")


if __name__ == "__main__":
    run_command(Options, main)
