"""Packings on disk: built once, whole or not at all, and never used when damaged."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash

from lit_gpt import files
from lit_gpt.cli import InputError
from lit_gpt.model.loss import IGNORE_INDEX
from lit_gpt.rows import packed_store as packing
from lit_gpt.rows import rows as rows_module
from lit_gpt.rows.bin_packing import covers
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.rows import RowTokens, row_checksum
from lit_gpt.rows.sample_order import SampleOrder
from lit_gpt.rows.store_entry import DocumentShare
from lit_gpt.store.token_store import TokenStore
from pretrain.data.batch import assemble

BLOCK = 64
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store_dir(train_store_dir: Path, tmp_path: Path) -> Path:
    """A store of several shards of the test's own."""
    return shutil.copytree(train_store_dir, tmp_path / "store", ignore=shutil.ignore_patterns("packing-*"))


@pytest.fixture
def store(store_dir: Path) -> TokenStore:
    store = TokenStore.open(store_dir)
    assert store.n_shards > 1
    return store


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("packing-*") if "." in path.name]


@pytest.mark.parametrize("strategy", ["best_fit", "concat", "one_per_row"])
def test_rows_and_checksums_are_the_stores(store: TokenStore, strategy: str, monkeypatch):
    monkeypatch.setattr(rows_module, "_ROWS_AT_ONCE", 7)
    packed = PackedStore.open(store, BLOCK, strategy)
    targets = 0
    for shard in range(store.n_shards):
        rows = packed.rows(shard)
        assert rows.n_rows == packed.rows_per_shard[shard]
        assert covers(rows, store.lengths(shard) - 1, BLOCK)
        targets += int((store.lengths(shard) - 1).sum())
        for row in range(rows.n_rows):
            read = b""
            for segment in range(rows.offsets[row], rows.offsets[row + 1]):
                tokens = store.document_tokens(shard, int(rows.document[segment]))
                start, length = int(rows.start[segment]), int(rows.length[segment])
                read += tokens[start : start + length + 1].astype("<u2").tobytes()
            assert packed.checksums(shard)[row] == xxhash.xxh3_64_intdigest(read)
            assert packed.checksums(shard)[row] == row_checksum(np.frombuffer(read, "<u2"))
    assert packed.n_targets == targets
    assert packed.waste == pytest.approx(1 - targets / (packed.rows_per_shard.sum() * BLOCK))
    packed.verify()


def test_is_found_again_by_store_block_size_and_strategy(store: TokenStore, tmp_path: Path):
    first = PackedStore.open(store, BLOCK)
    manifest = first.folder / packing.MANIFEST
    written = manifest.stat().st_mtime_ns
    again = PackedStore.open(TokenStore.open(store.path), BLOCK)
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert manifest.stat().st_mtime_ns == written
    others = [
        PackedStore.open(store, BLOCK + 1),
        PackedStore.open(store, BLOCK, "concat"),
        PackedStore.open(store, BLOCK, packing_dir=tmp_path / "deep" / "elsewhere"),
    ]
    assert len({other.folder for other in [first, *others]}) == 4
    assert len({other.fingerprint for other in [first, *others]}) == 3
    assert others[-1].fingerprint == first.fingerprint
    assert (others[-1].folder.parent, others[-1].folder.name) == (
        tmp_path / "deep/elsewhere",
        first.folder.name,
    )


def test_disjoint_shares_have_each_document_once(store: TokenStore):
    """Against a loop over the documents' ids; keys without a share are those of docs/formats.md."""
    lengths = {}
    for shard in range(store.n_shards):
        for document, length in enumerate(store.lengths(shard).tolist()):
            (info,) = store.document_info(shard, np.array([document]))
            lengths[shard, document] = (xxhash.xxh3_64_intdigest(info.id.encode()), length - 1)
    met = []
    for low, high in ((0, 12.5), (12.5, 70), (70, 100)):
        share = DocumentShare.parse(f"{low}-{high}")
        assert PackedStore.find(store, BLOCK, share=share) is None
        packed = PackedStore.open(store, BLOCK, share=share)
        expected = {
            place: n_targets
            for place, (value, n_targets) in lengths.items()
            if low * 2**64 <= value * 100 < high * 2**64
        }
        read: dict[tuple[int, int], int] = dict.fromkeys(expected, 0)
        for shard in range(store.n_shards):
            rows = packed.rows(shard)
            for document, length in zip(rows.document.tolist(), rows.length.tolist(), strict=True):
                read[shard, document] += length
        assert read == expected
        packed.verify()
        found = PackedStore.find(store, BLOCK, share=share)
        assert found is not None
        assert (found.folder, found.share) == (packed.folder, share)
        met += expected
    assert len(met) == len(set(met)) == store.n_documents
    identity = {
        "block_size": BLOCK,
        "format": "packing-1",
        "store": store.fingerprint,
        "strategy": "best_fit",
    }
    for more, share in (({}, None), ({"share": "70-100"}, DocumentShare.parse("70.0-100"))):
        text = json.dumps(identity | more, sort_keys=True).encode()
        key = hashlib.sha256(text).hexdigest()[:16]
        assert PackedStore.open(store, BLOCK, share=share).folder.name == f"packing-{key}"


def test_a_share_by_damaged_hashes_is_refused(store: TokenStore):
    flip(store.path / f"{store.manifest.shards[1].name}.ids", 3)
    with pytest.raises(InputError, match=r"\.ids differs from the store's manifest: restore it"):
        PackedStore.open(store, BLOCK, share=DocumentShare.parse("0-50"))


def test_another_store_under_the_same_path_gets_another_packing(store: TokenStore, val_store_dir: Path):
    first = PackedStore.open(store, BLOCK)
    for file in val_store_dir.iterdir():
        if file.is_file():
            shutil.copy(file, store.path)
    second = PackedStore.open(TokenStore.open(store.path), BLOCK)
    assert second.folder != first.folder
    second.verify()


def test_an_epoch_predicts_every_token_but_each_documents_first_once(store: TokenStore):
    packed = PackedStore.open(store, BLOCK)
    order = SampleOrder([packed.rows_per_shard], None, seed=5, shuffle_window=2)
    targets = np.zeros(store.vocab_size, dtype=np.int64)
    for shard, row in zip(*order.locate(np.arange(order.rows_per_epoch(0)))[2:], strict=True):
        rows, tokens = packed.rows(shard), store.tokens(shard)
        segments = slice(rows.offsets[row], rows.offsets[row + 1])
        first = store.pointers(shard)[rows.document[segments]] + rows.start[segments]
        read = [tokens[a : a + n + 1] for a, n in zip(first, rows.length[segments], strict=True)]
        batch = assemble([RowTokens(np.concatenate(read), rows.length[segments])], BLOCK, pad_token=0)
        labels = batch.labels[batch.labels != IGNORE_INDEX]
        targets += np.bincount(labels.numpy(), minlength=store.vocab_size)
    expected = np.zeros_like(targets)
    for shard in range(store.n_shards):
        for document in range(store.lengths(shard).size):
            expected += np.bincount(store.document_tokens(shard, document)[1:], minlength=store.vocab_size)
    assert np.array_equal(targets, expected)


def test_bad_settings_leave_nothing_behind(store: TokenStore):
    for block_size, strategy in ((0, "best_fit"), (BLOCK, "tight")):
        with pytest.raises(InputError):
            PackedStore.open(store, block_size, strategy)
    assert list(store.path.glob("packing-*")) == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def lie(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["rows"] -= 1
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shard-00001.rows", cut),
        ("shard-00001.rows", Path.unlink),
        ("packing.json", cut),
        ("packing.json", Path.unlink),
        ("packing.json", lie),
        ("packing.json", lambda path: path.write_text("[]")),
        ("packing.json", lambda path: path.write_bytes(b"\xff")),
    ],
)
def test_a_damaged_packing_is_refused_and_built_again_when_deleted(store: TokenStore, name, damage):
    packed = PackedStore.open(store, BLOCK)
    damage(packed.folder / name)
    with pytest.raises(InputError, match=rf"{packed.folder} is damaged .* delete that folder"):
        PackedStore.open(store, BLOCK)
    shutil.rmtree(packed.folder)
    assert PackedStore.open(store, BLOCK).fingerprint == packed.fingerprint


def test_every_flipped_byte_of_a_shards_rows_is_found(store: TokenStore):
    packed = PackedStore.open(store, BLOCK)
    path = packed.folder / "shard-00001.rows"
    for offset in range(0, path.stat().st_size, 97):
        flip(path, offset)
        opened = PackedStore.open(store, BLOCK)
        assert opened.rows(0).n_rows
        with pytest.raises(InputError, match=r"shard-00001.rows is not what was written"):
            opened.rows(1)
        flip(path, offset)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_damaged_store_is_not_packed(store: TokenStore, suffix: str):
    path = store.path / f"{store.manifest.shards[1].name}{suffix}"
    flip(path, path.stat().st_size - 3)
    with pytest.raises(InputError, match=path.name):
        PackedStore.open(TokenStore.open(store.path), BLOCK)
    assert [path.suffix for path in store.path.glob("packing-*")] == [".lock"]


@contextmanager
def no_more_files():
    """This process may open no file."""
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_file_descriptors_are_no_damage(store: TokenStore):
    packed = PackedStore.open(store, BLOCK)
    for read in (lambda: packed.rows(0), lambda: PackedStore.open(store, BLOCK)):
        with (
            no_more_files(),
            pytest.raises(InputError, match="open files; raise `ulimit -n`") as error,
        ):
            read()
        assert "damaged" not in str(error.value)
    assert packed.rows(0).n_rows


def test_ids_beyond_the_vocabulary_are_not_packed(store: TokenStore):
    path = store.path / "manifest.json"
    manifest = json.loads(path.read_text())
    highest = int(max(store.tokens(shard).max() for shard in range(store.n_shards)))
    path.write_text(json.dumps(manifest | {"vocab_size": highest}))
    with pytest.raises(InputError, match=f"the token id {highest}, but .* vocabulary has {highest} ids"):
        PackedStore.open(TokenStore.open(store.path), BLOCK)
    path.write_text(json.dumps(manifest | {"vocab_size": highest + 1}))
    PackedStore.open(TokenStore.open(store.path), BLOCK)


def test_verify_names_the_row_whose_tokens_changed(store: TokenStore):
    packed = PackedStore.open(store, BLOCK)
    rows = packed.rows(1)
    segment = rows.offsets[2]
    token = store.pointers(1)[rows.document[segment]] + rows.start[segment]
    flip(store.path / f"{store.manifest.shards[1].name}.bin", int(token) * store.dtype.itemsize)
    with pytest.raises(InputError, match=r"rows of shard 1, the first of them row"):
        PackedStore.open(TokenStore.open(store.path), BLOCK).verify()


def test_a_folder_that_cannot_be_written_is_named(store: TokenStore, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/packings.*another folder as packing_dir"):
        PackedStore.open(store, BLOCK, packing_dir=tmp_path / "file" / "packings")


def test_a_rename_that_is_not_on_disk_is_an_error(store: TokenStore, monkeypatch):
    fsync = os.fsync

    def full(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), store.path.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        PackedStore.open(store, BLOCK)


def in_processes(count: int, function) -> list[int]:
    processes = [FORK.Process(target=function, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_one_of_many_builds_and_the_others_wait(store: TokenStore, tmp_path: Path, monkeypatch):
    builds = tmp_path / "builds"
    build = packing._build

    def slow_build(*args):
        with builds.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        build(*args)

    monkeypatch.setattr(packing, "_build", slow_build)

    def open_it(number: int) -> None:
        fingerprint = PackedStore.open(TokenStore.open(store.path), BLOCK).fingerprint
        (tmp_path / f"fingerprint-{number}").write_text(fingerprint)

    assert in_processes(4, open_it) == [0] * 4
    assert builds.read_text() == "built\n"
    assert len({file.read_text() for file in tmp_path.glob("fingerprint-*")}) == 1
    assert leftovers(store.path) == []


def test_without_locks_the_loser_takes_the_winners(store: TokenStore, tmp_path: Path, monkeypatch):
    built = FORK.Barrier(3)
    build = packing._build

    def meet(*args):
        build(*args)
        built.wait(30)

    def no_locks(*args):
        raise OSError("locks are not supported")

    monkeypatch.setattr(packing, "_build", meet)
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    assert in_processes(3, lambda _: PackedStore.open(TokenStore.open(store.path), BLOCK).verify()) == [0] * 3
    assert leftovers(store.path) == []


@pytest.mark.slow
def test_killed_anywhere_it_is_built_by_the_next(store: TokenStore, monkeypatch):
    """SIGKILL before and after each sync and rename: what is left is no packing or a whole one."""
    expected = PackedStore.open(store, BLOCK, packing_dir=store.path.parent / "undisturbed").fingerprint
    killed = 0
    for moment in range(100):
        child = FORK.Process(target=open_and_die, args=(store.path, moment))
        child.start()
        child.join(60)
        whole = list(store.path.glob("packing-????????????????"))
        packed = PackedStore.open(TokenStore.open(store.path), BLOCK)
        assert packed.fingerprint == expected
        packed.verify()
        assert leftovers(store.path) == ([f"{packed.folder.name}.lock"] if whole and child.exitcode else [])
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        killed += not whole
        shutil.rmtree(packed.folder)
    assert killed >= 2 * store.n_shards


def open_and_die(path: Path, moment: int) -> None:
    moments = iter(range(moment, -1, -1))

    def deadly(function):
        def call(*args):
            for act in (None, function):
                if next(moments, 1) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = act(*args) if act else None
            return result

        return call

    for name in ("fsync", "rename"):
        setattr(os, name, deadly(getattr(os, name)))
    PackedStore.open(TokenStore.open(path), BLOCK)
