"""A store gives back what was written, and damage to any of its files is refused or found."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.cli import InputError
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer


@pytest.fixture
def store_dir(train_store_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(train_store_dir, tmp_path / "store")


def test_every_document_of_the_corpus_is_in_one_store(
    corpus_files: list[Path], train_store_dir: Path, val_store_dir: Path
):
    lines = [json.loads(line) for file in corpus_files for line in file.read_text().splitlines()]
    stores = [TokenStore.open(train_store_dir), TokenStore.open(val_store_dir)]
    tokenizer = Tokenizer.load(train_store_dir / "tokenizer")
    assert stores[0].n_shards > 1
    assert sum(store.n_documents for store in stores) == len(lines)
    for number, line in enumerate(lines):
        [(store, (shard, document))] = [(store, each) for store in stores for each in store.find(line["id"])]
        tokens = store.document_tokens(shard, document)
        assert (tokens[0], tokens[-1]) == (store.bos_id, store.eos_id)
        assert tokenizer.decode(tokens) == line["text"]
        if number % 50 == 0:
            [info] = store.document_info(shard, np.array([document]))
            file = corpus_files[number // 300]
            assert info == (line["id"], str(file), number % 300 + 1, len(tokens))


def test_counts_and_arrays_agree(train_store_dir: Path):
    store = TokenStore.open(train_store_dir)
    store.verify()
    assert store.find("nobody") == []
    assert store.n_tokens == sum(len(store.tokens(shard)) for shard in range(store.n_shards))
    for shard in range(store.n_shards):
        lengths, pointers = store.lengths(shard), store.pointers(shard)
        assert (lengths.dtype, pointers.dtype) == (np.int32, np.int64)
        assert np.array_equal(pointers, np.cumsum(lengths) - lengths)
    copy = store.tokens(0, folder=train_store_dir)
    assert np.array_equal(copy, store.tokens(0))


def test_the_fingerprint_is_of_the_content(store_dir: Path, train_store_dir: Path, val_store_dir: Path):
    original = TokenStore.open(train_store_dir).fingerprint
    assert TokenStore.open(store_dir).fingerprint == original != TokenStore.open(val_store_dir).fingerprint
    manifest = json.loads((store_dir / "manifest.json").read_text())
    (store_dir / "manifest.json").write_text(json.dumps(manifest | {"provenance": {"other": "story"}}))
    assert TokenStore.open(store_dir).fingerprint == original
    (store_dir / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": 600}))
    assert TokenStore.open(store_dir).fingerprint != original


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".docs.parquet", ".ids"])
def test_a_missing_or_truncated_file_is_refused(store_dir: Path, suffix: str):
    file = store_dir / f"shard-00001{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"shard-00001{suffix} has {len(content) - 1} bytes"):
        TokenStore.open(store_dir)
    file.unlink()
    with pytest.raises(InputError, match=f"shard-00001{suffix} is missing"):
        TokenStore.open(store_dir)


def test_every_flipped_byte_is_found(store_dir: Path):
    rng = random.Random(1)
    for file in sorted(store_dir.glob("shard-00000*")):
        content = bytearray(file.read_bytes())
        for position in rng.sample(range(len(content)), 10):
            damaged = content.copy()
            damaged[position] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=file.name):
                TokenStore.open(store_dir).verify()
        file.write_bytes(content)
    TokenStore.open(store_dir).verify()


def test_another_tokenizer_in_the_store_is_found(store_dir: Path):
    config = store_dir / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"bos_token": "<s>"', '"bos_token": "</s>"'))
    with pytest.raises(InputError, match="tokenizer"):
        TokenStore.open(store_dir).verify()


def test_an_index_of_other_documents_is_refused(store_dir: Path):
    first, second = (store_dir / f"shard-0000{number}.idx" for number in (0, 1))
    manifest = json.loads((store_dir / "manifest.json").read_text())
    manifest["shards"][0]["files"][first.name]["bytes"] = second.stat().st_size
    (store_dir / "manifest.json").write_text(json.dumps(manifest))
    shutil.copyfile(second, first)
    with pytest.raises(InputError, match=r"shard-00000\.idx"):
        TokenStore.open(store_dir).lengths(0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "not a token store"),
        ("", "not readable JSON"),
        ("[1, 2]", "is not a JSON object"),
        ("[" * 100_000, "not readable JSON"),
        ('{"format_version": 99}', "this program reads"),
        ('{"format_version": 1, "shards": [{}]}', "not the manifest"),
        ('{"format_version": 1, "shards": 7}', "not the manifest"),
    ],
)
def test_no_manifest_no_store(store_dir: Path, content: str | None, says: str):
    (store_dir / "manifest.json").unlink()
    if content is not None:
        (store_dir / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=says) as error:
        TokenStore.open(store_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(vocab_size=0), "vocab_size: must be at least 1"),
        (lambda m: m.update(vocab_size=10**30), "vocab_size: does not fit"),
        (lambda m: m.update(vocab_size=True), "vocab_size: true is not a whole number"),
        (lambda m: m.update(vocab_size=1), "bos, eos must be null or below vocab_size 1"),
        (lambda m: m.update(dtype="float64"), "dtype: 'float64' is not a choice"),
        (lambda m: m.update(dtype="int32"), "tokens do not fit into its .bin"),
        (lambda m: m.update(special_tokens={}), "bos, eos"),
        (lambda m: m.update(special_tokens=[1, 2]), "special_tokens: .* is not of the form"),
        (lambda m: m.update(shards={"a": 1}), "shards: "),
        (lambda m: m.update(shards=[None]), "shards: null is not of the form"),
        (lambda m: m.pop("tokenizer"), "tokenizer is missing"),
        (lambda m: m["shards"][0].update(n_documents=-1), "n_documents: must be at least 0"),
        (lambda m: m["shards"][0].update(n_tokens=1.5), "n_tokens: 1.5 is not a whole number"),
        (lambda m: m["shards"][0].update(n_with_bos=10**9), "more documents with BOS"),
        (lambda m: m["shards"][0].update(name="../shard-00000"), "not those of a shard"),
        (lambda m: m["shards"][0]["files"].update({"/a": {"bytes": 1, "xxh3_128": ""}}), "not those of"),
        (lambda m: m["shards"][0]["files"].pop("shard-00000.ids"), "not those of a shard"),
        (lambda m: m["shards"][0]["files"].update({"shard-00000.ids": 3}), "files: 3 is not of the form"),
    ],
)  # fmt: skip
def test_odd_values_in_a_manifest_are_named(store_dir: Path, change, says: str):
    path = store_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"{path}.*{says}") as error:
        TokenStore.open(store_dir)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_folders_are_no_stores(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(InputError, match="not a token store"):
            TokenStore.open(path)
