"""Reading our own files: bounded, regular files only, and every refusal names the file."""

import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from lit_gpt import files
from lit_gpt.cli import InputError
from lit_gpt.files import lock, open_regular, read_bounded, read_json


def test_an_object_comes_back(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
    assert read_json(tmp_path / "a.json", "") == {"a": [1, "ü"]}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": ' + b"1" * 5000 + b"}", b"[" * 100_000],
    ids=["empty", "torn", "no object", "not UTF-8", "endless integer", "nested"],
)
def test_what_is_no_object_is_refused_with_the_path(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(path, "")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"a\.json is missing; write one with b"):
        read_json(tmp_path / "a.json", "write one with b")


def _fifo(path):
    os.mkfifo(path)


def _loop(path):
    path.symlink_to(path)


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(6 << 30)


@pytest.mark.parametrize("make", [_fifo, _loop, _sparse, os.mkdir], ids=["fifo", "loop", "sparse", "folder"])
def test_no_hang_and_no_memory_for_other_kinds_of_files(tmp_path, make):
    make(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json", "")


def test_symlinks_are_refused_where_asked(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_bounded(tmp_path / "b") == b"abc"
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "b", follow_symlinks=False)
    with pytest.raises(OSError, match="larger than 2 bytes"):
        read_bounded(tmp_path / "a", limit=2)


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_that_its_holder_removes_has_no_second_holder(tmp_path, monkeypatch, wait):
    """Removed and let go between the moment another opens the file and the moment it locks it."""
    path = tmp_path / "lock"
    first = lock(path)
    flock = fcntl.flock

    def late(file, operation):
        if not first.closed:
            path.unlink()
            first.close()
        return flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    second = lock(path, wait=wait)
    assert os.path.samestat(os.fstat(second.fileno()), path.stat())
    assert lock(path) is None
    second.close()


def test_of_processes_that_remove_their_locks_one_is_inside(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_enter, args=(tmp_path, 200)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4


def _enter(folder: Path, times: int) -> None:
    while times:
        if (held := lock(folder / "lock")) is not None:
            with held:
                (folder / "inside").touch(exist_ok=False)  # fails where another is inside
                times -= 1
                (folder / "inside").unlink()
                (folder / "lock").unlink()
