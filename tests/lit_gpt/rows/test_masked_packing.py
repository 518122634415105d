"""Packings of masked stores: how many targets count, against a loop over documents; nothing is cut."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.cli import InputError
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.store_entry import DocumentShare
from lit_gpt.store import masking
from lit_gpt.store.token_store import TokenStore
from tests.masked_stores import masked_store

BLOCK = 64


@pytest.fixture
def store(masked_store_dir: Path, tmp_path: Path) -> TokenStore:
    """A masked store of several shards of the test's own."""
    folder = shutil.copytree(masked_store_dir, tmp_path / "chat", ignore=shutil.ignore_patterns("packing-*"))
    store = TokenStore.open(folder)
    assert store.n_shards > 1
    return store


@pytest.mark.parametrize(("strategy", "share"), [("best_fit", None), ("one_per_row", "20-70")])
def test_the_targets_that_count_are_those_of_the_mask(store: TokenStore, strategy: str, share: str | None):
    packed = PackedStore.open(store, BLOCK, strategy, share=share and DocumentShare.parse(share))
    total = filled = 0
    for shard in range(store.n_shards):
        rows = packed.rows(shard)
        assert not rows.start.any()
        for row in range(rows.n_rows):
            documents = rows.document[rows.offsets[row] : rows.offsets[row + 1]]
            raw = [store.document_tokens(shard, int(document)) for document in documents]
            counted = [sum(int(token) >= 0 for token in tokens[1:]) for tokens in raw]
            assert packed.loss_targets(shard)[row] == sum(counted)
            assert packed.loss_targets_of(shard, documents).tolist() == counted
            total += sum(counted)
            filled += sum(len(tokens) - 1 for tokens in raw)
    assert packed.n_targets == total
    assert (total == store.n_targets) == (share is None)
    assert packed.waste == pytest.approx(1 - filled / (packed.rows_per_shard.sum() * BLOCK))
    packed.verify()


def test_plain_stores_keep_their_packings_and_masked_ones_have_a_format_of_their_own(
    store: TokenStore, train_store_dir: Path, tmp_path: Path
):
    plain = TokenStore.open(train_store_dir)
    for of, name in ((plain, "packing-1"), (store, "packing-masked-1")):
        packed = PackedStore.open(of, BLOCK, packing_dir=tmp_path / "packings")
        identity = {"block_size": BLOCK, "format": name, "store": of.fingerprint, "strategy": "best_fit"}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        assert packed.folder.name == f"packing-{key}"
        manifest = json.loads((packed.folder / "packing.json").read_text())
        assert manifest["format"] == name
        assert all(("counted" in entry) == of.masked for entry in manifest["shards"])
    every = packed.loss_targets(0)
    assert (every <= packed.rows(0).targets_per_row).all()
    packed = PackedStore.open(plain, BLOCK, packing_dir=tmp_path / "packings")
    assert packed.loss_targets(0) is packed.rows(0).targets_per_row


def test_a_changed_mask_is_damage(store: TokenStore):
    packed = PackedStore.open(store, BLOCK)
    path = store.path / "shard-00001.bin"
    raw = np.memmap(path, "<i4", "r+")
    raw[5] = masking.mask(masking.ids_of(raw[5:6]), ~masking.is_target(raw[5:6]))[0]
    raw.flush()
    with pytest.raises(InputError, match=r"rows of shard 1, .* row \d+, are not what was packed"):
        packed.verify()
    shutil.rmtree(packed.folder)
    with pytest.raises(InputError, match=r"shard-00001\.bin differs from the store's manifest"):
        PackedStore.open(store, BLOCK)


def test_counts_that_the_mask_does_not_give_are_damage(store: TokenStore):
    """A file that is whole, with the hash that the packing has, but not of this mask."""
    packed = PackedStore.open(store, BLOCK)
    rows, checksums, counted = packed._open_shard(1)
    wrong = counted.length.copy()
    wrong[3] += 1
    packed._open_shard = lambda shard: (  # type: ignore[assignment]
        (rows, checksums, type(rows)(rows.offsets, rows.document, rows.start, wrong))
        if shard == 1
        else packed._read_shard(shard)
    )
    with pytest.raises(InputError, match="shard 1 has not the targets that the mask says"):
        packed.verify()


def test_conversations_are_not_cut(store: TokenStore, tmp_path: Path, tokenizer_dir: Path):
    longest = max(int(store.lengths(shard).max()) for shard in range(store.n_shards))
    PackedStore.open(store, longest - 1)
    with pytest.raises(InputError, match=rf"the longest has {longest} tokens: .* --max_tokens {longest - 1}"):
        PackedStore.open(store, longest - 2)
    with pytest.raises(InputError, match="masked, and packing concat cuts documents: choose best_fit"):
        PackedStore.open(store, BLOCK, "concat")
    unlearnable = TokenStore.open(masked_store(tmp_path / "none", tokenizer_dir, [[("Hallo", False)]]))
    with pytest.raises(InputError, match="none of its tokens is a target"):
        PackedStore.open(unlearnable, BLOCK)
    assert len(list(store.path.glob("packing-*"))) == 1
    assert not list(unlearnable.path.glob("packing-*"))


def test_ids_past_the_vocabulary_are_refused_under_the_mask(tmp_path: Path, tokenizer_dir: Path):
    path = masked_store(tmp_path / "chat", tokenizer_dir, [[("Hallo", False), ("Welt", True)]])
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= {"vocab_size": 5, "special_tokens": {"bos": 0, "eos": 1, "unk": None}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"holds the token id \d+, but the store's vocabulary has 5 ids"):
        PackedStore.open(TokenStore.open(path), BLOCK)
