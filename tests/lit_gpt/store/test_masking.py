"""A masked store holds ids and mask, each token in one number; plain stores stay as they were."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.store import masking
from lit_gpt.store.manifest import ChatFormat, Manifest
from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from tests.masked_stores import CHAT, masked_store


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans())))
def test_ids_and_mask_come_back_and_the_sign_bit_is_the_mask(tokens):
    ids, targets = [token for token, _ in tokens], [target for _, target in tokens]
    raw = masking.mask(np.array(ids, np.int64), np.array(targets, bool))
    assert raw.dtype == np.int32
    assert masking.ids_of(raw).tolist() == ids
    assert masking.is_target(raw).tolist() == targets
    assert raw.view(np.uint32).tolist() == [
        token | (0 if target else 0x8000_0000) for token, target in tokens
    ]


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_ids_of_plain_stores_pass_through(dtype):
    ids = np.array([0, 7, 65_535], dtype)
    assert np.array_equal(masking.ids_of(ids), ids)
    assert masking.ids_of(ids).dtype == ids.dtype
    assert masking.is_target(ids).all()


def test_a_masked_store_gives_back_what_was_written(tmp_path: Path, tokenizer_dir: Path):
    conversation = [("Wie heißt du?", False), ("Ich heiße Wald.", True)]
    store = TokenStore.open(masked_store(tmp_path / "chat", tokenizer_dir, [conversation, conversation[:1]]))
    tokenizer = Tokenizer.load(tokenizer_dir)
    store.verify()
    assert (store.masked, store.dtype, store.manifest.chat) == (True, np.int32, CHAT)
    assert store.document_ends == (2, 2, 2)  # counted on ids: the second conversation's EOS is no target
    raw = store.document_tokens(0, 0)
    assert tokenizer.decode(masking.ids_of(raw)) == "Wie heißt du?Ich heiße Wald."
    assert tokenizer.decode(masking.ids_of(raw[masking.is_target(raw)])) == "Ich heiße Wald."
    assert masking.ids_of(raw[[0, -1]]).tolist() == [tokenizer.bos_id, tokenizer.eos_id]
    assert masking.is_target(raw[[0, -1]]).tolist() == [False, True]
    assert not masking.is_target(store.document_tokens(0, 1)).any()
    assert store.n_targets == masking.is_target(raw).sum()


def test_a_stopped_writer_goes_on_with_raw_tokens(tmp_path: Path, tokenizer_dir: Path):
    tokenizer = Tokenizer.load(tokenizer_dir)
    raw = masking.mask(np.arange(4, 12), np.arange(8) % 3 == 0)

    def written(stops: bool) -> dict[str, str]:
        folder = tmp_path / str(stops)
        writer = TokenStoreWriter(folder, tokenizer, 20, masked=True)
        for number in range(5):
            writer.add(str(number), "", number, raw)
            if stops and number == 2:
                snapshot = json.loads(json.dumps(writer.snapshot()))
                writer.add("lost", "", 0, raw)
                writer = TokenStoreWriter(folder, tokenizer, 20, snapshot, masked=True)
        store = writer.finish({}, CHAT)
        assert np.array_equal(store.document_tokens(1, 1), raw)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    assert written(True) == written(False)


def _manifest(store: Path) -> dict:
    return json.loads((store / "manifest.json").read_text())


def test_only_masked_stores_have_the_new_version_and_keys(train_store_dir: Path, masked_store_dir: Path):
    plain, masked = _manifest(train_store_dir), _manifest(masked_store_dir)
    assert plain["format_version"] == 1
    assert masked["format_version"] == 2
    assert masked.keys() - plain.keys() == {"masked", "chat"}
    assert masked["shards"][0].keys() - plain["shards"][0].keys() == {"n_targets"}
    assert masked["chat"] == {"template": CHAT.template, "end_of_turn": CHAT.end_of_turn}
    for folder in (train_store_dir, masked_store_dir):
        assert Manifest.read(folder).to_json() == (folder / "manifest.json").read_text()


def test_the_mask_is_in_the_fingerprint_and_the_template_is_not(tmp_path: Path, tokenizer_dir: Path):
    def fingerprint(name: str, target: bool, chat: ChatFormat | None) -> str:
        store = masked_store(tmp_path / name, tokenizer_dir, [[("Hallo", target), ("Welt", True)]], chat)
        return TokenStore.open(store).fingerprint

    first = fingerprint("a", False, CHAT)
    assert first == fingerprint("b", False, None) == fingerprint("c", False, ChatFormat("other", 3))
    assert first != fingerprint("d", True, CHAT)
    # The same bytes, said to be plain ids: another content.
    manifest = _manifest(tmp_path / "d")
    del manifest["masked"], manifest["chat"]
    for shard in manifest["shards"]:
        del shard["n_targets"]
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    assert TokenStore.open(tmp_path / "d").fingerprint != fingerprint("e", True, CHAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format version 3, this program reads 1 and 2"),
        ({"format_version": 1}, "masked is True, which format version 1 does not allow"),
        ({"masked": False, "chat": None}, "n_targets: the shards of masked stores have it, and no others"),
        ({"masked": False}, "chat: the store must be masked"),
        ({"chat": {"template": "", "end_of_turn": 512}}, "end_of_turn an id of its vocabulary"),
        ({"chat": {"template": ""}}, "chat: end_of_turn is missing"),
        ({"dtype": "uint16"}, "masked tokens are int32, not uint16"),
    ],
)
def test_a_manifest_that_does_not_fit_together_is_refused(tmp_path, masked_store_dir, changes, message):
    folder = shutil.copytree(masked_store_dir, tmp_path / "store")
    (folder / "manifest.json").write_text(json.dumps(_manifest(folder) | changes))
    with pytest.raises(InputError, match=message):
        TokenStore.open(folder)
