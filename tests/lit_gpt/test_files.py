"""Durable file operations, and that nobody else does them; bounded reading that names what it refuses."""

import ast
import fcntl
import json
import multiprocessing
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_gpt import files
from lit_gpt.cli import InputError
from lit_gpt.files import lock, new_folder, open_regular, read_bounded, read_json
from lit_gpt.hashed_files import FileEntry, hash_files, write_hashed

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("lit_gpt", "pretrain", "data_prep", "scripts")
RESERVED = re.compile(
    r"os\.(fsync|fdatasync|replace|renames?)|fcntl\.\w+|shutil\.move|tempfile\.(mk|Named)\w+"
    r"|xxhash\.xxh3_128(_hexdigest)?|hashlib\.file_digest"
)


def durable_operations(tree: ast.AST) -> Iterator[str]:
    """Uses of what files.py and hashed_files.py are for; `path.replace(target)` has one argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and RESERVED.fullmatch(name := ast.unparse(node)):
            yield name
        if isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from filter(RESERVED.fullmatch, names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            n_arguments = len(node.args) + len(node.keywords)
            if node.func.attr == "rename" or (node.func.attr == "replace" and n_arguments == 1):
                yield f".{node.func.attr}"


def test_files_are_synced_renamed_locked_and_hashed_in_one_place():
    known = {"lit_gpt/files.py", "lit_gpt/hashed_files.py"}
    # One compares hash functions, the other hashes tensors.
    known |= {"scripts/bench_checkpoint.py", "scripts/faults/rank.py"}
    found = {
        str(path.relative_to(ROOT)): list(durable_operations(ast.parse(path.read_text(encoding="utf-8"))))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name: uses for name, uses in found.items() if uses and name not in known} == {}


@pytest.mark.parametrize(
    "breach",
    [
        "os.fsync(3)",
        "def f():\n    os.rename(a, b)",
        "path.rename(target)",
        "path.with_suffix('.tmp').replace(path)",
        "fcntl.flock(file, fcntl.LOCK_EX)",
        "from os import replace",
        "xxhash.xxh3_128(data)",
        "tempfile.mkstemp()",
    ],
)
def test_a_durable_operation_elsewhere_is_seen(breach):
    assert list(durable_operations(ast.parse(breach)))


def test_a_hash_taken_while_writing_is_that_of_the_file(tmp_path):
    content = os.urandom((16 << 20) + 5)  # more than is written at once
    entry = write_hashed(tmp_path / "a", content)
    assert entry == hash_files(tmp_path / "a", durable=True)
    assert entry.bytes == len(content)
    (tmp_path / "b").write_bytes(content[:100])
    (tmp_path / "c").write_bytes(content[100:])
    assert hash_files(tmp_path / "b", tmp_path / "c") == entry
    with pytest.raises(FileExistsError):
        write_hashed(tmp_path / "a", b"")
    assert hash_files() == FileEntry(0, "99aa06d3014798d86001c324468d497f")


def test_a_new_folder_has_its_name_only_when_complete(tmp_path):
    with (
        pytest.raises(InputError, match="missing/file: No such file"),
        new_folder(tmp_path / "a/b") as folder,
    ):
        (folder / "missing/file").touch()
    assert not list((tmp_path / "a").iterdir())
    with new_folder(tmp_path / "a/b") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "a/b").exists()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "file"]
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "a/b"):
        pass


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
