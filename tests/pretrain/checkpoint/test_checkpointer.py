"""Saving, finding and loading in one process. tests/pretrain/test_checkpoint_ranks.py has several."""

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lit_gpt import hashed_files
from lit_gpt.checkpoint.folder import DamagedCheckpoint, folder_name, list_checkpoints, verify
from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from pretrain.checkpoint import collective as ranks
from pretrain.checkpoint import writer as checkpoint_writer
from pretrain.launch import run_folder
from pretrain.options import TrainOptions
from tests.disks import on_a_dead_disk
from tests.pretrain.saving import (
    Small,
    assert_same,
    checkpointer,
    everything,
    mounted,
    optimizer_of,
    train,
)

SHARD = "model/rank-00000-000.safetensors"


def trained(steps: int, **model_settings):
    model = Small(**model_settings).fill(0)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1, steps + 1))
    return model, optimizer


def run_to(out_dir: Path, steps: int, **settings) -> dict[int, tuple]:
    """A run with a checkpoint at every step; returns what each must bring back."""
    out_dir.mkdir(exist_ok=True)
    saver = checkpointer(out_dir, **settings)
    model, optimizer = trained(0)
    expected = {}
    for step in range(1, steps + 1):
        train(model, optimizer, range(step, step + 1))
        saver.save(step, model, optimizer, {"data": {"samples": 4 * step}})
        expected[step] = everything(model, optimizer)
    saver.close()
    return expected


def loaded(out_dir: Path, resume: str = "true", **settings):
    """State and everything else as a fresh process would find it."""
    saver = checkpointer(out_dir, **settings)
    model = Small().fill(99)
    optimizer = optimizer_of(model)
    state = saver.load(saver.find(resume), model, optimizer)
    return state, everything(model, optimizer)


def steps_in(out_dir: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(out_dir)]


# ---- the round trip


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_a_round_trip_is_bitwise_exact(tmp_path, kind):
    expected = run_to(tmp_path, 3, state_dict_type=kind)
    state, found = loaded(tmp_path)
    assert_same(found, expected[3])
    assert state == {"step": 3, "data": {"samples": 12}}
    assert found[1]["param_groups"][0]["lr"] == 0.1 / 3
    assert found[1]["param_groups"][0]["betas"] == (0.9, 0.95)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    run_to(tmp_path, 3)
    model, optimizer = trained(0)
    saver = checkpointer(tmp_path)
    saver.load(saver.find("auto"), model, optimizer)
    train(model, optimizer, range(4, 7))
    assert_same(everything(model, optimizer), everything(*trained(6)))


def test_a_learning_rate_on_the_device_is_put_back_in_place(tmp_path):
    model, optimizer = trained(1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.3)
    saver = checkpointer(tmp_path)
    saver.save(1, model, optimizer, {})
    saver.close()
    rate = optimizer.param_groups[0]["lr"]
    rate.fill_(7.0)
    saver.load(saver.find("true"), model, optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.3)


def test_weights_and_moments_in_bf16(tmp_path):
    model = Small().fill(0).bfloat16()
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saver = checkpointer(tmp_path)
    saver.save(1, model, optimizer, {})
    saver.close()
    other = Small().fill(1).bfloat16()
    saver.load(saver.find("true"), other, other_optimizer := optimizer_of(other))
    assert_same(everything(other, other_optimizer), everything(model, optimizer))

    master = Small().fill(1)
    with pytest.raises(InputError, match="resume with the precision"):
        saver.load(saver.find("true"), master, optimizer_of(master))
    saver.load(saver.find("true"), master, None)  # to start from weights is another matter
    assert torch.equal(master.first.weight, model.first.weight.float())


# ---- saving while training continues


class Gate:
    """Holds the writing of files until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        write = checkpoint_writer.write_tensors

        def held(*arguments):
            self.reached.set()
            assert self.open.wait(30)
            return write(*arguments)

        monkeypatch.setattr(checkpoint_writer, "write_tensors", held)


def test_the_snapshot_is_of_the_moment_of_the_call(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = trained(2)
    expected = everything(model, optimizer)
    saver = checkpointer(tmp_path)
    saver.save(2, model, optimizer, {})
    assert gate.reached.wait(30)
    train(model, optimizer, range(3, 6))  # returns although nothing is written yet
    assert not saver.errors.stop
    assert steps_in(tmp_path) == []
    gate.open.set()
    saver.close()
    assert_same(loaded(tmp_path)[1], expected)


def test_one_save_is_in_flight_and_its_memory_is_used_again(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = trained(1)
    saver = checkpointer(tmp_path)
    saver.save(1, model, optimizer, {})
    threading.Timer(0.2, gate.open.set).start()
    saver.save(2, model, optimizer, {})  # waits for the first
    assert 1 in steps_in(tmp_path)
    memory = saver._staging._buffer.data_ptr()
    saver.save(3, model, optimizer, {})
    saver.close()
    assert saver._staging._buffer.data_ptr() == memory
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert 3 * weights <= len(saver._staging._buffer) <= 3 * weights + 8 * 9


# ---- saves that fail


def failing_save(saver, out_dir: Path, pattern: str, policy: str) -> None:
    model, optimizer = trained(9)
    saver.save(9, model, optimizer, {})
    saver.wait()
    assert saver.errors.stop == (policy == "stop")
    with pytest.raises(InputError, match=pattern):
        saver.close()


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk(tmp_path, capsys, policy):
    with mounted(tmp_path / "disk", "size=256k") as disk:
        expected = run_to(disk, 2, keep_last=2)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "other").write_bytes(bytes(free - 8192))
        saver = checkpointer(disk, keep_last=2, on_save_error=policy)
        failing_save(saver, disk, r"step 9 .*iter-00000009.*: No space left on device", policy)
        assert capsys.readouterr().err.count("No space left") == 1
        assert_same(loaded(disk)[1], expected[2])
        assert not list(disk.glob("*.tmp"))  # would only keep the disk full

        (disk / "other").unlink()
        model, optimizer = trained(9)
        saver.save(9, model, optimizer, {})
        saver.close()
        assert_same(loaded(disk)[1], everything(model, optimizer))


def test_a_read_only_folder(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        expected = run_to(disk, 2)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        failing_save(checkpointer(disk), disk, r"iter-00000009.*: Read-only file system", "stop")
        assert_same(loaded(disk)[1], expected[2])


def test_the_run_folder_is_deleted_and_not_made_again(tmp_path):
    run_to(tmp_path / "run", 1)
    saver = checkpointer(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")  # as when a mount is lost: what is below it must not be filled
    failing_save(saver, tmp_path / "run", r"run/iter-00000009.*: No such file or directory", "stop")
    assert not (tmp_path / "run").exists()


def test_the_folder_being_written_is_deleted(tmp_path, monkeypatch):
    expected = run_to(tmp_path, 2)
    gate = Gate(monkeypatch)
    saver = checkpointer(tmp_path)
    saver.save(9, *trained(9), {})
    assert gate.reached.wait(30)
    shutil.rmtree(tmp_path / (folder_name(9) + ".tmp"))
    gate.open.set()
    with pytest.raises(InputError, match=r"iter-00000009-ckpt.pth.tmp/model.*: No such file"):
        saver.close()
    assert_same(loaded(tmp_path)[1], expected[2])


# ---- finding


def damage(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)


def test_the_newest_valid_one_is_used_and_damaged_ones_are_set_aside(tmp_path, capsys):
    expected = run_to(tmp_path, 4, keep_last=0)
    damage(tmp_path / folder_name(4))
    (tmp_path / folder_name(3) / SHARD).write_bytes(pickle.dumps(print))
    (tmp_path / folder_name(2) / ".nfs000000000001").write_bytes(pickle.dumps(print))  # nobody reads it
    for age, step in enumerate([4, 3, 2, 1]):  # a clock that ran backwards
        os.utime(tmp_path / folder_name(step), (age, age))

    state, found = loaded(tmp_path, "auto")
    assert state["step"] == 2
    assert_same(found, expected[2])
    assert steps_in(tmp_path) == [1, 2]
    aside = tmp_path / "iter-00000004-ckpt.pth.damaged"
    assert (aside / SHARD).exists()
    assert "does not match its hash" in aside.with_name(aside.name + ".txt").read_text()
    assert f"{SHARD}: 33 bytes, should be" in (tmp_path / "iter-00000003-ckpt.pth.damaged.txt").read_text()
    assert "iter-00000004-ckpt.pth.damaged" in capsys.readouterr().err

    run_to(tmp_path, 4, keep_last=0)
    damage(tmp_path / folder_name(4))  # again
    assert loaded(tmp_path, "auto")[0]["step"] == 3
    assert (tmp_path / "iter-00000004-ckpt.pth.damaged-2").is_dir()


@pytest.mark.parametrize("name", ["MANIFEST.json", SHARD])
def test_a_checkpoint_on_a_disk_that_fails_is_set_aside(tmp_path, name):
    expected = run_to(tmp_path, 2)
    with on_a_dead_disk(tmp_path / folder_name(2) / name):
        assert_same(loaded(tmp_path, "auto")[1], expected[1])
        reason = (tmp_path / "iter-00000002-ckpt.pth.damaged.txt").read_text()
        assert f"{name}: cannot be read: Input/output error" in reason


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", SHARD])
def test_what_is_no_file_is_set_aside_without_waiting(tmp_path, name, make):
    expected = run_to(tmp_path, 2)
    (tmp_path / folder_name(2) / name).unlink()
    make(tmp_path / folder_name(2) / name)
    assert_same(loaded(tmp_path, "auto")[1], expected[1])
    assert name in (tmp_path / "iter-00000002-ckpt.pth.damaged.txt").read_text()


@pytest.mark.parametrize("resume", ["true", "auto"])
def test_a_run_whose_every_checkpoint_is_damaged_is_not_begun_anew(tmp_path, resume):
    run_to(tmp_path, 1)
    damage(tmp_path / folder_name(1))
    for _ in range(2):  # nor by the job that is started next
        with pytest.raises(InputError, match=r"no checkpoint is complete \(.*damaged\.txt says why\)"):
            loaded(tmp_path, resume)


def test_a_damaged_folder_that_is_named_is_refused_and_left_as_it_is(tmp_path):
    run_to(tmp_path, 2)
    damage(folder := tmp_path / folder_name(2))
    with pytest.raises(DamagedCheckpoint, match=f"{SHARD}: content"):
        checkpointer(tmp_path).find(str(folder))
    with pytest.raises(DamagedCheckpoint, match=f"{SHARD}: content"):
        checkpointer(tmp_path).load(folder, *trained(0))
    assert folder.is_dir()


def test_none_is_found(tmp_path):
    assert checkpointer(tmp_path).find("auto") is None
    with pytest.raises(InputError, match="no valid checkpoint"):
        checkpointer(tmp_path).find("true")
    with pytest.raises(InputError, match="no such folder"):
        checkpointer(tmp_path).find(str(tmp_path / "typo"))


@pytest.mark.parametrize("manifest", ["whole", "torn", "not begun"])
def test_killed_before_the_rename(tmp_path, manifest):
    expected = run_to(tmp_path, 2)
    temporary = (tmp_path / folder_name(2)).rename(tmp_path / (folder_name(2) + ".tmp"))
    if manifest == "torn":
        os.truncate(temporary / "MANIFEST.json", 100)
    elif manifest == "not begun":
        (temporary / "MANIFEST.json").unlink()
    state, found = loaded(tmp_path, "auto")
    assert state["step"] == (2 if manifest == "whole" else 1)
    assert_same(found, expected[state["step"]])
    assert not list(tmp_path.glob("*.damaged"))  # it was never finished, so there is nothing to look into


def test_going_back_sets_the_abandoned_attempt_aside(tmp_path):
    run_to(tmp_path, 4, keep_last=0)
    loaded(tmp_path, str(tmp_path / folder_name(2)))
    assert steps_in(tmp_path) == [1, 2]
    verify(tmp_path / "iter-00000004-ckpt.pth.superseded")
    assert loaded(tmp_path, "auto")[0]["step"] == 2


# ---- another model


def test_another_model_is_refused_by_its_first_difference(tmp_path):
    run_to(tmp_path, 1)
    saver = checkpointer(tmp_path)
    folder = saver.find("true")
    with pytest.raises(InputError, match=r"first.weight is \[11, 7\] in the checkpoint and \[11, 8\]"):
        saver.load(folder, *trained(0, width=8))
    linear = torch.nn.Linear(7, 11)
    with pytest.raises(InputError, match="bias is only in the model"):
        saver.load(folder, linear, optimizer_of(linear))
    model, _ = trained(0)
    one_group = torch.optim.AdamW(model.parameters())
    with pytest.raises(InputError, match="parameter groups are not those"):
        saver.load(folder, model, one_group)


SHAPE = {name: value for name, value in ModelConfig.load("tiny_100K").to_dict().items() if name != "name"}


def load_of_another(out_dir: Path, saved: dict, expected: dict) -> None:
    saver = checkpointer(out_dir)
    saver.save(1, *trained(1), saved)
    saver.close()
    saver.load(saver.find("true"), *trained(0), expected=expected)


def test_another_configuration_is_refused_by_its_fields(tmp_path):
    pattern = r"model.rope_base is 10000.0 in the checkpoint, 500000.0 here; batch is 8 .*, 16 here"
    with pytest.raises(InputError, match=pattern):
        load_of_another(
            tmp_path, {"model": SHAPE, "batch": 8}, {"model": SHAPE | {"rope_base": 5e5}, "batch": 16}
        )


def test_a_field_that_an_earlier_revision_did_not_have_has_its_default(tmp_path):
    """Every field with a default was new once."""
    fields = dataclasses.fields(ModelConfig)
    new = [field.name for field in fields if field.default is not dataclasses.MISSING]
    old = {name: value for name, value in SHAPE.items() if name not in new}
    assert len(new) >= 6
    load_of_another(tmp_path, {"model": old}, {"model": SHAPE})
    with pytest.raises(InputError, match=r"model.tie_embeddings is False in the checkpoint, True here$"):
        load_of_another(tmp_path, {"model": old}, {"model": SHAPE | {"tie_embeddings": True}})


def test_a_field_that_a_later_revision_has_is_not_overlooked(tmp_path):
    with pytest.raises(InputError, match=r"iter-00000001-ckpt.pth: attention_sinks: no such option"):
        load_of_another(tmp_path, {"model": SHAPE | {"attention_sinks": 4}}, {"model": SHAPE})


# ---- what is not ours


FOREIGN = {
    "a file": Path.touch,
    "a link to a folder": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a loop of links": lambda path: path.symlink_to(path),
    "a FIFO": os.mkfifo,
}


def seen(out_dir: Path) -> dict[str, tuple[int, int]]:
    """What is in a folder, by name: kind and inode."""
    return {path.name: (path.lstat().st_mode, path.lstat().st_ino) for path in out_dir.iterdir()}


@pytest.mark.parametrize("suffix", ["", ".tmp", ".deleting", ".deleting-2"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_has_a_checkpoints_name_and_is_none_is_refused_at_the_start(tmp_path, suffix, kind):
    (tmp_path / "elsewhere").mkdir()
    checkpoint_writer.refuse_foreign(tmp_path)
    FOREIGN[kind](path := tmp_path / (folder_name(9) + suffix))
    before = seen(tmp_path)
    with pytest.raises(
        InputError, match=rf"{path.name} has a checkpoint's name but is not a folder: move it"
    ):
        run_folder.prepare(TrainOptions(train_data_dir=["x"], out_dir=str(tmp_path), resume="auto"))
    assert seen(tmp_path) == before


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_put_in_the_way_later_is_named_and_left(tmp_path, kind):
    """Only what is exactly in the way stops a save."""
    (tmp_path / "elsewhere").mkdir()
    run_to(tmp_path, 2, keep_last=1)
    for name in ("", ".tmp"):
        FOREIGN[kind](path := tmp_path / (folder_name(9) + name))
        before = seen(tmp_path)
        failing_save(checkpointer(tmp_path), tmp_path, f"{path.name} has a checkpoint's name", "stop")
        assert seen(tmp_path) == before
        path.unlink()
    others = [folder_name(2) + ".deleting", folder_name(3) + ".tmp", "iter-notes-ckpt.pth.tmp"]
    for name in others:
        FOREIGN[kind](tmp_path / name)
    before = seen(tmp_path)
    run_to(tmp_path, 5, keep_last=1)
    assert steps_in(tmp_path) == [5]
    assert {name: seen(tmp_path).get(name) for name in others} == {name: before[name] for name in others}


def test_the_reason_is_never_written_through_a_link(tmp_path):
    run_to(tmp_path, 2)
    (tmp_path / "mine").write_text("mine")
    damage(tmp_path / folder_name(2))
    (tmp_path / (folder_name(2) + ".damaged.txt")).symlink_to("mine")
    (tmp_path / (folder_name(2) + ".damaged-2")).symlink_to("nowhere")
    assert loaded(tmp_path, "auto")[0]["step"] == 1
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / (folder_name(2) + ".damaged-3")).is_dir()


def test_what_cannot_be_removed_stops_no_save(tmp_path, monkeypatch, capsys):
    """As with a file that another machine holds open on NFS."""
    run_to(tmp_path, 1)
    (tmp_path / (folder_name(1) + ".deleting")).mkdir()
    with mounted(tmp_path / (folder_name(1) + ".deleting") / "busy", "size=16k"):
        run_to(tmp_path, 4, keep_last=2)
        assert steps_in(tmp_path) == [3, 4]
        assert "old checkpoints were not removed: " in capsys.readouterr().err


# ---- deleting


def test_what_is_kept(tmp_path):
    run_to(tmp_path, 11, keep_last=2, keep_every=4)
    assert steps_in(tmp_path) == [4, 8, 10, 11]
    assert [path.name for path in tmp_path.iterdir() if "deleting" in path.name] == []


def test_nothing_is_deleted_for_a_checkpoint_that_does_not_verify(tmp_path, capsys):
    run_to(tmp_path, 3, keep_last=0)
    damage(newest := tmp_path / folder_name(3))
    with pytest.raises(DamagedCheckpoint):
        checkpoint_writer.retain(ranks.Ranks(None, 0, 1), newest, keep_last=1, keep_every=0)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_what_does_not_look_whole_neither_counts_nor_goes(tmp_path):
    run_to(tmp_path, 4, keep_last=0)
    (tmp_path / folder_name(4) / SHARD).unlink()
    (tmp_path / folder_name(1) / "MANIFEST.json").unlink()
    assert checkpoint_writer.expired(tmp_path, keep_last=1, keep_every=0) == [tmp_path / folder_name(2)]


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    run_to(tmp_path, 2)
    model, optimizer = trained(5)
    saver = checkpointer(tmp_path)
    saver.save(2, model, optimizer, {})
    saver.close()
    assert_same(loaded(tmp_path)[1], everything(model, optimizer))
    assert steps_in(tmp_path) == [1, 2]


# ---- crashes


def die_at(point: int) -> None:
    """Kill this process before its `point`-th change to a file system."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        writing = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            count()

    file, fsync = hashed_files._HashedFile, os.fsync
    write = file.write
    file.write = lambda *arguments: (count(), write(*arguments))[1]
    os.fsync = lambda *arguments: (count(), fsync(*arguments))[1]
    sys.addaudithook(audit)


def save_in_child(out_dir: Path, step: int, point: int) -> bool:
    """Whether the child lived through it."""
    state = trained(step)  # not in the child: a fork has none of torch's worker threads
    child = os.fork()
    if child == 0:
        try:
            saver = checkpointer(out_dir, keep_last=2)
            die_at(point)
            saver.save(step, *state, {})
            saver.close()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step again"])
def test_killed_before_any_change_to_the_disk_nothing_is_lost(tmp_path, again):
    """Every point of a save: staging, each file, its fsync, manifest, renames, each removal of retention."""
    expected = run_to(tmp_path / "before", 3, keep_last=2)
    expected[4] = everything(*trained(4))
    saved = 3 if again else 4
    point, lived = 0, False
    while not lived:
        point += 1
        out_dir = tmp_path / str(point)
        shutil.copytree(tmp_path / "before", out_dir)
        lived = save_in_child(out_dir, saved, point)
        state, found = loaded(out_dir, "auto")
        assert_same(found, expected[state["step"]])
        assert state["step"] >= 3, f"killed at point {point}, a step was lost"
        assert not list(out_dir.glob("*.damaged")), f"killed at point {point}, half a folder looked whole"

        saver = checkpointer(out_dir, keep_last=2)
        saver.save(5, *trained(5), {})
        saver.close()
        left = [path.name for path in out_dir.iterdir()]
        assert sorted(left)[-1] == folder_name(5)
        assert not [name for name in left if "tmp" in name or "deleting" in name]
        shutil.rmtree(out_dir)
    assert point > 22
