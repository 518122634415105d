"""Pack a store into rows and check the packing: the work of pack.py and of the last stage of prepare.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.option_types import PositiveInt
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore


@dataclass
class Options:
    """Pack a token store's documents into rows, and check the packing against the store."""

    store: Path
    """Folder of the token store."""
    block_size: PositiveInt = 2048
    """Targets per row; the block_size of the training."""
    strategy: Literal["best_fit", "concat", "one_per_row"] = "best_fit"
    """`best_fit` cuts only documents longer than a row, `concat` cuts wherever a row ends, `one_per_row`
    never joins documents."""
    packing_dir: Path | None = None
    """Where to write the packing (default: into the store)."""


def pack(options: Options) -> None:
    """Make the packing unless it is there, verify it, and print its figures."""
    store = TokenStore.open(options.store)
    packed = PackedStore.open(store, options.block_size, options.strategy, options.packing_dir)
    packed.verify()
    rows = int(packed.rows_per_shard.sum())
    segments = sum(shard.pieces for shard in packed.shards)
    cut = sum(shard.cut_documents for shard in packed.shards)
    print(f"packing      {packed.folder}")
    print(f"rows         {rows:,} of {options.block_size:,} targets")
    print(f"waste        {packed.waste:.4%} of slots")
    print(f"segments     {segments:,}, {segments / max(1, rows):.2f} a row")
    print(f"cut          {cut:,} of {store.n_documents:,} documents")
    print(f"checks       each of {packed.n_targets:,} targets is in one row; {rows:,} row checksums agree")
    print(f"fingerprint  {packed.fingerprint}")
