"""A store's bytes depend on its documents alone, not on how they were handed over or when it was stopped."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_dir)


@pytest.fixture(autouse=True)
def quick_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it guards against a power cut, not a kill


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def add(writer: TokenStoreWriter, lengths: list[int], first: int) -> None:
    numbers = list(range(first, first + len(lengths)))
    tokens = np.concatenate([np.arange(n) % 7 + first for first, n in zip(numbers, lengths, strict=True)])
    writer.add_many([f"id {n}" for n in numbers], "source", numbers, np.array(lengths), tokens)


@settings(max_examples=15)
@given(data=st.data())
def test_any_interruption_leaves_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, data: st.DataObject
):
    folder = tmp_path_factory.mktemp("stores")
    batches = data.draw(
        st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=6)
    )
    straight = TokenStoreWriter(folder / "straight", tokenizer, max_shard_tokens=20)
    number = 0
    for batch in batches:
        for length in batch:
            add(straight, [length], number)
            number += 1
    straight.finish({})

    writer = TokenStoreWriter(folder / "stopped", tokenizer, max_shard_tokens=20)
    kept, at = None, 0  # what a killed run would find, and how many batches it holds
    done = 0
    while done < len(batches):
        match data.draw(st.sampled_from(["go on", "snapshot", "kill"])):
            case "go on":
                add(writer, batches[done], sum(map(len, batches[:done])))
                done += 1
            case "snapshot":
                kept, at = json.loads(json.dumps(writer.snapshot())), done
            case "kill" if kept is not None:
                writer = TokenStoreWriter(folder / "stopped", tokenizer, 20, snapshot=kept)
                done = at
    writer.finish({})
    assert contents(folder / "stopped") == contents(folder / "straight")


def test_a_closed_writer_goes_on_to_the_same_end(tmp_path: Path, tokenizer: Tokenizer):
    writer = TokenStoreWriter(tmp_path / "a", tokenizer, max_shard_tokens=10)
    add(writer, [8, 8, 8], 0)
    writer.close_shard()
    kept = writer.snapshot()
    writer.finish({"from": "here"})
    first = contents(tmp_path / "a")
    TokenStoreWriter(tmp_path / "a", tokenizer, 10, snapshot=kept).finish({"from": "here"})
    assert contents(tmp_path / "a") == first


def test_shards_are_bounded_but_hold_whole_documents(tmp_path: Path, tokenizer: Tokenizer):
    writer = TokenStoreWriter(tmp_path / "s", tokenizer, max_shard_tokens=10)
    add(writer, [4, 6, 1, 25, 9, 1, 1], 0)
    store = writer.finish({})
    assert [store.lengths(shard).tolist() for shard in range(store.n_shards)] == [
        [4, 6],
        [1],
        [25],
        [9, 1],
        [1],
    ]
    assert [entry.n_tokens for entry in store.manifest.shards] == [10, 1, 25, 10, 1]


STRANGE = ["a/b/../c", "quote\"s 'and' more", "line\nend\r\n", "x" * 10_000, "", "ü☃", "../../../etc/passwd"]


def test_strange_ids_are_data(tmp_path: Path, tokenizer: Tokenizer):
    writer = TokenStoreWriter(tmp_path / "s", tokenizer, max_shard_tokens=30)
    for number, name in enumerate(STRANGE + STRANGE):
        writer.add(name, "so\nurce", number, tokenizer.encode([f"Text {number}"])[0])
    store = writer.finish({})
    for number, name in enumerate(STRANGE):
        found = store.find(name)
        assert len(found) == 2
        for shard, document in found:
            [info] = store.document_info(shard, np.array([document]))
            assert info.id == name
            assert info.source_line % len(STRANGE) == number
            text = tokenizer.decode(store.document_tokens(shard, document))
            assert text == f"Text {info.source_line}"
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert all(name.startswith("shard-") or name in {"manifest.json", "tokenizer"} for name in names)


def test_what_cannot_be_written_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(InputError, match="no document"):
        TokenStoreWriter(tmp_path / "empty", tokenizer).finish({})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(InputError, match="not empty"):
        TokenStoreWriter(tmp_path / "full", tokenizer)


def test_a_snapshot_whose_files_are_gone_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    writer = TokenStoreWriter(tmp_path / "s", tokenizer)
    add(writer, [5], 0)
    kept = writer.snapshot()
    (tmp_path / "s" / "shard-00000.bin").write_bytes(b"12")
    with pytest.raises(InputError, match="lost"):
        TokenStoreWriter(tmp_path / "s", tokenizer, snapshot=kept)


def test_bos_and_eos_are_counted(tmp_path: Path, tokenizer: Tokenizer):
    writer = TokenStoreWriter(tmp_path / "s", tokenizer)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    for number, tokens in enumerate([[bos, 9, eos], [9, eos], [bos, 9], [9, 9], [eos]]):
        writer.add(str(number), "", number, np.array(tokens))
    store = writer.finish({})
    assert store.document_ends[1:] == (2, 3)
    assert TokenStore.open(tmp_path / "s").fingerprint == store.fingerprint
