"""The shard cache: the same tokens whatever happens to it, within its size, shared by a lock alone."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gpt import files
from lit_gpt.cli import InputError
from lit_gpt.store.token_store import TokenStore
from pretrain.data import shard_cache
from pretrain.data.shard_cache import ShardCache
from tests.pretrain.feeding import feed, flip, open_data

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(train_store_dir, tmp_path):
    return TokenStore.open(shutil.copytree(train_store_dir, tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def opened(store, folder):
    caches = []

    def open_cache(max_bytes=10**9, *stores):
        caches.append(ShardCache(folder, max_bytes, stores or [store]))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.005)


def copies(folder):
    return {path.name for path in folder.glob("*/*.bin")}


def bytes_in(folder):
    total = 0
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):  # renamed or removed since it was listed
            total += path.stat().st_size
    return total


def is_copy(mapped, folder):
    return Path(mapped.filename).is_relative_to(folder)


def size(store, shard):
    return (store.path / f"shard-{shard:05d}.bin").stat().st_size


def test_shards_are_copied_and_read_there(store, folder, opened):
    cache = opened()
    assert not is_copy(cache.tokens(0, 2), folder)
    cache.want([(0, 2), (0, 0)])
    wait_for(lambda: copies(folder) == {"shard-00002.bin", "shard-00000.bin"})
    for shard in (2, 0):
        assert is_copy(cache.tokens(0, shard), folder)
        assert np.array_equal(cache.tokens(0, shard), store.tokens(shard))
    assert not is_copy(cache.tokens(0, 1), folder)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_feeds_the_same_with_and_without(store, folder, prefetch):
    plain = feed(open_data(store.path))
    cached = feed(open_data(store.path, cache_dir=str(folder)), prefetch=prefetch)
    for _ in range(300):
        one, other = next(plain), next(cached)
        assert torch.equal(one.micro_batches[0].input_ids, other.micro_batches[0].input_ids)
    wait_for(lambda: len(copies(folder)) >= 2)
    cached.close()


def test_the_cap_holds_and_what_nobody_wants_any_more_makes_room(store, folder, opened, monkeypatch):
    monkeypatch.setattr(shard_cache, "IN_USE_SECONDS", -1)
    cap = size(store, 0) + size(store, 1) + 100
    cache = opened(cap)
    for wanted in ([0, 1], [1, 2], [3, 4, 5], [0]):
        cache.want([(0, shard) for shard in wanted])
        name = f"shard-{wanted[0]:05d}.bin"
        wait_for(lambda name=name: name in copies(folder))
        assert bytes_in(folder) <= cap


def test_what_another_job_uses_is_not_removed(store, folder, opened):
    cap = max(size(store, shard) for shard in range(store.n_shards))
    one, other = opened(cap), opened(cap)
    one.want([(0, 0)])
    wait_for(lambda: copies(folder) == {"shard-00000.bin"})
    other.want([(0, 1)])
    time.sleep(0.2)
    assert copies(folder) == {"shard-00000.bin"}
    assert np.array_equal(other.tokens(0, 1), store.tokens(1))


def test_a_cache_too_small_for_a_shard_or_not_writable_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="less than one shard"):
        ShardCache(tmp_path / "cache", 1000, [store])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ShardCache(tmp_path / "file", 10**9, [store])


# ---- faults

_COPY = """
import sys, time
sys.path.insert(0, {root!r})
from lit_gpt.store.token_store import TokenStore
from pretrain.data import shard_cache
%s
store = TokenStore.open({store!r})
cache = shard_cache.ShardCache({folder!r}, 10**9, [store])
cache.want([(0, shard) for shard in range(store.n_shards)])
%s
"""
_UNTIL_ALL = """
while not all(str(cache.tokens(0, shard).filename).startswith({folder!r}) for shard in range(store.n_shards)):
    time.sleep(0.01)
"""


def run_copier(store, folder, before="", after=_UNTIL_ALL):
    program = (_COPY % (before, after)).format(root=str(ROOT), store=str(store.path), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)


def test_killed_while_it_copies(store, folder, opened):
    process = run_copier(
        store, folder, "shard_cache.os.fsync = lambda descriptor: time.sleep(1000)", "time.sleep(1000)"
    )
    wait_for(lambda: list(folder.glob("*/*.part")))
    cache = opened()
    cache.want([(0, 0), (0, 1)])
    time.sleep(0.1)
    assert copies(folder) == set()  # the other holds the lock
    assert np.array_equal(cache.tokens(0, 0), store.tokens(0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: len(copies(folder)) == 2)
    assert not list(folder.glob("*/*.part"))
    assert np.array_equal(cache.tokens(0, 0), store.tokens(0))


def test_processes_share_the_copies_and_make_each_once(store, folder):
    count = "copied = []; real = shard_cache.rename\n"
    count += "shard_cache.rename = lambda a, b: (copied.append(1), real(a, b))"
    report = _UNTIL_ALL + "cache.close(); print(len(copied), file=sys.stderr)"
    processes = [run_copier(store, folder, count, report) for _ in range(3)]
    made = [int(process.communicate(timeout=120)[1]) for process in processes]
    assert sum(made) == store.n_shards
    for shard in range(store.n_shards):
        assert np.array_equal(store.tokens(shard, folder / store.fingerprint[:32]), store.tokens(shard))


def test_a_full_disk_is_said_once_and_read_around(store, folder):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size(store, 0) - 1},) * 2)"
    read = "cache._thread.join(); cache.want([(0, 1)]); "
    read += "assert (cache.tokens(0, 0) == store.tokens(0)).all(); cache.close()"
    process = run_copier(store, folder, limit, read)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 0, output
    assert output.count("File too large; from now on shards are read where the stores are") == 1
    assert not list(folder.glob("*/*"))


def test_without_locks_nothing_is_copied(store, folder, opened, monkeypatch, capfd):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    cache = opened()
    cache.want([(0, 0)])
    said = []
    wait_for(lambda: said.append(capfd.readouterr().err) or "No locks available" in "".join(said))
    assert copies(folder) == set()
    assert np.array_equal(cache.tokens(0, 0), store.tokens(0))


def test_a_damaged_copy_is_named_and_not_fed(store, folder):
    data = open_data(store.path, cache_dir=str(folder))
    loader = feed(data)
    next(loader)
    wait_for(lambda: copies(folder))
    loader.close()
    for copy in folder.glob("*/*.bin"):
        copy.write_bytes(copy.read_bytes()[::-1])
    loader = feed(data)
    with pytest.raises(InputError, match=rf"{folder}/.*/shard-\d+\.bin: row \d+ of shard \d+ is not"):
        next(loader)
    loader.close()


def test_a_copy_of_the_wrong_size_is_not_used(store, folder, opened):
    cache = opened()
    cache.want([(0, 0)])
    wait_for(lambda: copies(folder))
    copy = next(folder.glob("*/*.bin"))
    os.truncate(copy, 10)
    assert np.array_equal(cache.tokens(0, 0), store.tokens(0))
    assert not is_copy(cache.tokens(0, 0), folder)


def test_a_shard_that_is_not_its_manifests_is_not_copied(store, folder, opened, capfd):
    flip(store.path / "shard-00000.bin", 100)
    cache = opened()
    for _ in range(3):
        cache.want([(0, 0), (0, 1)])
        wait_for(lambda: copies(folder) == {"shard-00001.bin"})
    cache.close()
    assert capfd.readouterr().err.count("is not what its manifest says, not copied") == 1
