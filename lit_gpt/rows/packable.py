"""What must hold of a token store so that it can be packed."""

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.store_entry import DocumentShare
from lit_gpt.store import masking
from lit_gpt.store.token_store import TokenStore


def n_targets_of(store: TokenStore, shard: int, share: DocumentShare | None) -> np.ndarray:
    """Targets by document, int32 (n_documents of the shard,); documents outside the share have none."""
    n_targets = store.lengths(shard) - 1
    return n_targets if share is None else n_targets * store.in_hash_range(shard, *share.bounds)


def check_masked(
    store: TokenStore, block_size: int, strategy: str, share: DocumentShare | None = None
) -> None:
    """Refuse to cut documents of a masked store: an answer would lose what it answers.

    Raises:
        InputError: the rows are too short for the longest document, the strategy cuts, or there is no target.
    """
    if not store.masked:
        return
    if not store.n_targets:
        raise InputError(f"{store.path} is masked and none of its tokens is a target: nothing to learn in it")
    if strategy == "concat":
        raise InputError(f"{store.path} is masked, and packing concat cuts documents: choose best_fit")
    longest = max(int(n_targets_of(store, shard, share).max(initial=0)) for shard in range(store.n_shards))
    if longest > block_size:
        raise InputError(
            f"{store.path} is masked, so that its documents are not cut, and the longest has {longest + 1:,} "
            f"tokens: rows of block_size {block_size:,} take {block_size + 1:,}; raise block_size, or "
            f"tokenize again with --max_tokens {block_size + 1}"
        )


def check_shard(store: TokenStore, shard: int) -> None:
    """Hash what is about to be packed: row checksums of damaged tokens would hide the damage."""
    name = store.manifest.shards[shard].name
    for suffix in (".bin", ".idx"):
        store.check_file(shard, suffix)
    raw = store.tokens(shard)
    ids = masking.ids_of(raw) if store.masked else raw
    lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lowest < 0 or highest >= store.vocab_size:
        raise InputError(
            f"{store.path}: {name}.bin holds the token id {lowest if lowest < 0 else highest}, but the "
            f"store's vocabulary has {store.vocab_size} ids: tokenize again, with the tokenizer of the store"
        )
