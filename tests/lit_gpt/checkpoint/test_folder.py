"""Whatever is done to a checkpoint's folder is found before anything in it is used."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import DamagedCheckpoint, Manifest
from lit_gpt.checkpoint.tensor_files import TensorReader, TensorSpec, write_tensors
from lit_gpt.cli import InputError
from lit_gpt.files import rename
from lit_gpt.hashed_files import FileEntry, hash_bytes
from lit_gpt.store import tokenizer
from tests.disks import on_a_dead_disk, read_as_nobody


def build(out_dir: Path, step: int, n_ranks: int = 2, value: float = 1.0) -> Path:
    """A small checkpoint as `n_ranks` ranks would write it; every tensor is `value + step`."""
    folder = out_dir / checkpoint.folder_name(step)
    temporary = checkpoint.create(folder)
    files = {}
    for part in ("model", "optim"):
        for rank in range(n_ranks):
            name = f"{part}/rank-{rank:05d}-000.safetensors"
            spec = TensorSpec("w", torch.float32, (2000, 3), 2000 * rank)
            files[name] = write_tensors(
                temporary / name, [spec], lambda spec: torch.full(spec.shape, value + step)
            )
    files["state.json"] = checkpoint.write_state(temporary, {"step": step})
    checkpoint.seal(temporary, Manifest(step, n_ranks, "sharded", files))
    rename(temporary, folder)
    return folder


def test_a_checkpoint_may_hold_every_file_of_a_tokenizer():
    """The checkpoint is below the store and names them itself: a new one is a new version of the format."""
    assert checkpoint.TOKENIZER_FILES == tokenizer.FILES


def flip_bit(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


SHARD = "model/rank-00001-000.safetensors"


def _zero_page(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[8192:12288] = bytes(4096)
    (folder / SHARD).write_bytes(data)


def _swap(folder: Path) -> None:
    a, b = folder / "model/rank-00000-000.safetensors", folder / SHARD
    a.rename(folder / "c")
    b.rename(a)
    (folder / "c").rename(b)


def _edit_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps(content | changes))


def _forge_manifest(folder: Path, name: str) -> None:
    """An attacker who knows the format lists his own file, with a hash that fits."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(_RunsCode()))
    manifest = checkpoint.read_manifest(folder)
    data = (folder / name).read_bytes()
    entry = FileEntry(len(data), hash_bytes(data))
    forged = Manifest(manifest.step, 2, "sharded", {**manifest.files, name: entry})
    (folder / "MANIFEST.json").write_text(forged.to_json())


def _plant(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_RunsCode()))


def _link(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder.parent / "elsewhere")
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(folder.parent / "elsewhere")


def _link_part(folder: Path) -> None:
    (folder / "model").rename(folder.parent / "elsewhere")
    (folder / "model").symlink_to(folder.parent / "elsewhere")


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(6 << 30)


KINDS_OF_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (Path.mkdir, "(cannot be read: not a regular file|a link, or not a regular file)"),
    "a FIFO": (os.mkfifo, "(cannot be read: not a regular file|a link, or not a regular file)"),
    "a loop of links": (lambda path: path.symlink_to(path), "(cannot be read: Too many|a link, or not)"),
    "6 GB of nothing": (_sparse, "(cannot be read: larger than|6442450944 bytes, should be)"),
}

FAULTS = {
    "bit flip": (lambda f: flip_bit(f / SHARD, 9000, 3), rf"{SHARD}: content does not match"),
    "bit flip in a header": (lambda f: flip_bit(f / SHARD, 20, 0), rf"{SHARD}: content does not match"),
    "zeroed page": (_zero_page, rf"{SHARD}: content does not match"),
    "truncated": (lambda f: os.truncate(f / SHARD, 5000), rf"{SHARD}: 5000 bytes, should be"),
    "grown": (lambda f: os.truncate(f / SHARD, 50000), rf"{SHARD}: 50000 bytes, should be"),
    "missing": (lambda f: (f / SHARD).unlink(), rf"{SHARD}: missing"),
    "swapped": (_swap, r"model/rank-0000\d-000.safetensors: content does not match"),
    "stale shard of this rank": (
        lambda f: shutil.copy(build(f.parent, 7) / SHARD, f / SHARD),
        rf"{SHARD}: content does not match",
    ),
    "no manifest": (lambda f: (f / "MANIFEST.json").unlink(), r"has no MANIFEST.json"),
    "torn manifest": (lambda f: os.truncate(f / "MANIFEST.json", 300), r"MANIFEST.json: "),
    "empty manifest": (lambda f: os.truncate(f / "MANIFEST.json", 0), r"MANIFEST.json: "),
    "manifest of another step": (
        lambda f: shutil.copy(build(f.parent, 7) / "MANIFEST.json", f),
        r"MANIFEST.json: is of step 7, its folder of step 10",
    ),
    "edited manifest": (lambda f: _edit_manifest(f, world_size=3), r"does not match its own hash"),
    "folder of another step": (
        lambda f: (shutil.rmtree(f), build(f.parent, 7).rename(f)),
        r"is of step 7, its folder of step 10",
    ),
    "changed state": (lambda f: flip_bit(f / "state.json", 12, 0), r"state.json: content does not match"),
    "pickle as a shard": (lambda f: _plant(f, SHARD), rf"{SHARD}: \d+ bytes, should be"),
    "pickle as the manifest": (lambda f: _plant(f, "MANIFEST.json"), r"MANIFEST.json: "),
    "pickle in a forged manifest": (lambda f: _forge_manifest(f, "model/x.pt"), r"which no checkpoint holds"),
    "path out of the folder": (
        lambda f: _forge_manifest(f, "../x.safetensors"),
        r"which no checkpoint holds",
    ),
    "link in place of a shard": (_link, rf"{SHARD}: a link, or not a regular file"),
    "link in place of a part": (_link_part, r"model: a link, or not a regular file"),
    **{
        f"{kind} as {name}": (lambda f, make=make, name=name: _replace(f / name, make), rf"{name}: {message}")
        for name in (SHARD, "state.json", "MANIFEST.json")
        for kind, (make, message) in KINDS_OF_FILES.items()
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_found_and_named(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    folder = build(tmp_path, 10)
    assert checkpoint.verify(folder).step == 10
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        checkpoint.verify(folder)
    assert "\n" not in str(caught.value)
    assert not Path("pickle-was-run").exists()


def test_what_the_manifest_does_not_name_is_never_opened(tmp_path, monkeypatch):
    """Neither what NFS leaves, nor notes, nor a shard of a larger run, nor a pickle, nor a FIFO."""
    monkeypatch.chdir(tmp_path)
    folder = build(tmp_path, 10)
    listed = {f"{folder}/{name}" for name in (*checkpoint.read_manifest(folder).files, "MANIFEST.json")}
    for name in (".nfs00000000001", "README", ".metadata", "model/meta.pth", "tokenizer.safetensors"):
        _plant(folder, name)
    shutil.copy(folder / SHARD, folder / "model/rank-00002-000.safetensors")
    os.mkfifo(folder / "model/rank-00003-000.safetensors")
    (folder / "code").mkdir()
    opened = []

    def audit(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            opened.append(str(arguments[0]))

    sys.addaudithook(audit)
    manifest = checkpoint.verify(folder)
    assert checkpoint.read_state(folder) == {"step": 10}
    assert torch.equal(
        TensorReader(folder, manifest.of_parts(["model"])).read("w"), torch.full((4000, 3), 11.0)
    )
    assert set(opened) == listed
    assert not Path("pickle-was-run").exists()


def test_what_may_not_be_read_is_damage(tmp_path):
    folder = build(tmp_path, 10)
    with (
        read_as_nobody(folder / SHARD),
        pytest.raises(DamagedCheckpoint, match=f"{SHARD}: cannot be read: Perm"),
    ):
        checkpoint.verify(folder)


def test_a_folder_that_cannot_be_looked_into_is_found_and_damaged(tmp_path):
    folder = build(tmp_path, 10)
    with read_as_nobody(tmp_path, allowed=0o444):  # names can be read, and nothing of what they name
        assert checkpoint.list_checkpoints(tmp_path) == [(10, folder)]
        with pytest.raises(DamagedCheckpoint, match=r"MANIFEST\.json: cannot be read: Permission denied"):
            checkpoint.verify(folder)


@pytest.mark.parametrize("name", [SHARD, "state.json", "MANIFEST.json"])
def test_a_disk_that_gives_no_answer_is_damage(tmp_path, name):
    """EIO by the kernel: the file's blocks are on a disk that is gone."""
    folder = build(tmp_path, 10)
    with (
        on_a_dead_disk(folder / name),
        pytest.raises(DamagedCheckpoint, match=f"{name}: cannot be read: Input/output error"),
    ):
        checkpoint.verify(folder)


def test_no_file_descriptor_left_is_no_damage(tmp_path):
    """What this process lacks says nothing of the checkpoint."""
    folder = build(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(next_free := os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
    try:
        with pytest.raises(InputError, match="Too many open files") as caught:
            checkpoint.verify(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, DamagedCheckpoint)


@given(st.data())
def test_any_flipped_bit_anywhere_is_found(tmp_path_factory, data):
    folder = build(tmp_path_factory.mktemp("run"), 10)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    flip_bit(path, data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7)))
    with pytest.raises(DamagedCheckpoint):
        checkpoint.verify(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("format", "step", "files", "world_size"), JSON)))
def test_a_manifest_that_makes_no_sense_is_refused_in_one_line(tmp_path_factory, changes):
    folder = build(tmp_path_factory.mktemp("run"), 10)
    content = json.loads((folder / "MANIFEST.json").read_text()) | changes
    del content["xxh3_128"]
    content["xxh3_128"] = checkpoint._hash_of_json(content)  # whoever forges it can hash it too
    (folder / "MANIFEST.json").write_text(json.dumps(content))
    with contextlib.suppress(DamagedCheckpoint):
        manifest = checkpoint.verify(folder)
        assert manifest.step == 10
        assert all((folder / name).is_file() for name in manifest.files)


def test_a_manifest_nested_without_end_is_refused(tmp_path):
    (build(tmp_path, 10) / "MANIFEST.json").write_text("[" * 100_000)
    with pytest.raises(DamagedCheckpoint, match=r"MANIFEST\.json"):
        checkpoint.verify(tmp_path / checkpoint.folder_name(10))


def test_a_part_can_be_verified_alone(tmp_path):
    folder = build(tmp_path, 10)
    shutil.rmtree(folder / "optim")
    manifest = checkpoint.verify(folder, parts=("model", "state"))
    assert manifest.world_size == 2
    assert torch.equal(
        TensorReader(folder, manifest.of_parts(["model"])).read("w"), torch.full((4000, 3), 11.0)
    )
    with pytest.raises(DamagedCheckpoint, match="optim"):
        checkpoint.verify(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(DamagedCheckpoint, match="no such folder"):
        checkpoint.verify(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DamagedCheckpoint, match="no such folder"):
        checkpoint.verify(tmp_path / "file")


def test_checkpoints_are_ordered_by_step_whatever_the_clock_said(tmp_path):
    for age, step in enumerate([999, 3, 100_000_000, 20]):
        (folder := tmp_path / checkpoint.folder_name(step)).mkdir()
        os.utime(folder, (age, age))
    for other in ("iter-00000005-ckpt.pth.tmp", "iter-00000006-ckpt.pth.damaged", "iter-x-ckpt.pth"):
        (tmp_path / other).mkdir()
    (tmp_path / "iter-00000007-ckpt.pth").touch()  # a file
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path)] == [3, 20, 999, 100_000_000]
    assert checkpoint.list_checkpoints(tmp_path / "nowhere") == []


def test_a_file_lost_while_saving_is_not_sealed(tmp_path):
    folder = tmp_path / checkpoint.folder_name(1)
    temporary = checkpoint.create(folder)
    entry = checkpoint.write_state(temporary, {})
    manifest = Manifest(1, 1, "full", {"state.json": entry})
    (temporary / "state.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: missing"):
        checkpoint.seal(temporary, manifest)
    assert not (temporary / "MANIFEST.json").exists()


def test_everything_is_on_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    synced: set[int] = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.add(os.fstat(fd).st_ino)))
    plain_rename = os.rename
    unsynced: list[set[int]] = []

    def recording_rename(path: Path, target: Path) -> None:
        unsynced.append({p.stat().st_ino for p in [path, *path.rglob("*")]} - synced)
        plain_rename(path, target)

    monkeypatch.setattr(os, "rename", recording_rename)
    build(tmp_path, 10)
    assert unsynced == [set()]  # one rename, of a folder that was on disk
    assert tmp_path.stat().st_ino in synced
