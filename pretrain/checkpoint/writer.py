"""Checkpoint folders on disk: written by all ranks, deleted when they expire, renamed when they are damaged.

Writing and deleting is what the saving thread does. It is collective over the checkpointer's gloo group: a
failure on one rank is one on all, and leaves the checkpoints that were there as they are. A folder is renamed
before it is deleted, so that one half deleted never looks complete.
"""

import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import (
    DamagedCheckpoint,
    Manifest,
    check_files,
    check_kind,
    list_checkpoints,
    read_manifest,
)
from lit_gpt.checkpoint.tensor_files import MAX_FILE_BYTES, split_into_files, write_tensors
from lit_gpt.cli import InputError
from lit_gpt.files import rename
from lit_gpt.hashed_files import FileEntry
from pretrain.checkpoint.collective import Ranks, verify_together
from pretrain.checkpoint.snapshot import Snapshot

_NAME = re.compile(r"iter-\d{8,}-ckpt\.pth(\.tmp|\.deleting(-\d+)?)?")


def write_checkpoint(
    ranks: Ranks, folder: Path, step: int, state_dict_type: str, snapshot: Snapshot, state: Mapping[str, Any]
) -> None:
    """Build `<folder>.tmp`, force it to disk, rename it.

    Raises:
        InputError: on all ranks, naming the path and the cause; nothing is left behind.
    """
    temporary = folder.with_name(folder.name + ".tmp")

    def prepare() -> None:
        with suppress(OSError):  # only takes room; `retain` reports it
            purge(folder.parent)
        checkpoint.create(folder)

    def finish() -> None:
        checkpoint.seal(temporary, manifest)
        # The same step once more. A crash in between leaves the sealed one for `find`.
        if os.path.lexists(folder):
            rename_for_deletion(folder)
        rename(temporary, folder)

    ranks.first(prepare)
    try:
        parts = ranks.each(lambda: _write_files(ranks, temporary, snapshot, state))
        files = {name: FileEntry(**entry) for part in parts for name, entry in part.items()}
        manifest = Manifest(step, ranks.world_size, state_dict_type, files)
        ranks.first(finish)
    except InputError:
        if ranks.rank == 0:  # an incomplete folder only fills the disk
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def retain(
    ranks: Ranks, newest: Path, keep_last: int, keep_every: int, permanent: Collection[int] = ()
) -> None:
    """Delete expired checkpoints, but only after the newest has been read back and verified.

    Raises:
        InputError: on all ranks; the checkpoint just saved is not affected.
    """
    find = partial(expired, newest.parent, keep_last, keep_every, permanent)
    folders = [Path(f) for f in ranks.first(find)]
    if not folders:
        return

    def remove() -> None:
        for folder in folders:
            rename_for_deletion(folder)
        purge(newest.parent)

    verify_together(ranks, newest)
    ranks.first(remove)


def _write_files(
    ranks: Ranks, temporary: Path, snapshot: Snapshot, state: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """This rank's files: entries of the manifest as JSON, by name."""
    written = {}
    for part, tensors in (("model", snapshot.model), ("optim", snapshot.optim)):
        for number, group in enumerate(split_into_files(tensors, MAX_FILE_BYTES)):
            name = f"{part}/rank-{ranks.rank:05d}-{number:03d}.safetensors"
            written[name] = write_tensors(temporary / name, group, tensors.__getitem__)
    if ranks.rank == 0:
        written[checkpoint.STATE] = checkpoint.write_state(temporary, state)
    return {name: asdict(entry) for name, entry in written.items()}


# ---- what expires, and what is in the way


def refuse_foreign(out_dir: Path) -> None:
    """Check that nothing is in the way of saving, before hours are spent.

    Raises:
        InputError: naming a file or a link with the name of a checkpoint, or of one being written or deleted.
    """
    for _, entry in _named(out_dir):
        if not entry.is_dir(follow_symlinks=False):
            check_kind(Path(entry.path))


def expired(out_dir: Path, keep_last: int, keep_every: int, permanent: Collection[int] = ()) -> list[Path]:
    """Checkpoints that may be deleted, oldest first.

    Kept are the newest `keep_last` (0: all), every one whose step is a multiple of `keep_every` (0: none) and
    those of `permanent` steps.
    One that looks incomplete neither counts nor is deleted: `find` renames it.
    """
    complete = [
        (step, folder)
        for step, folder in list_checkpoints(out_dir)
        if not folder.is_symlink() and _looks_complete(folder)
    ]
    candidates = complete[:-keep_last] if keep_last else []
    return [
        folder
        for step, folder in candidates
        if step not in permanent and not (keep_every and step % keep_every == 0)
    ]


def rename_for_deletion(folder: Path) -> Path:
    """Rename a checkpoint to `*.deleting`, which is never loaded and which `purge` deletes."""
    check_kind(folder)
    return rename(folder, _free_name(folder, "deleting"))


def purge(out_dir: Path) -> None:
    """Delete `*.deleting`, and the `*.tmp` that crashes left behind.

    Raises:
        OSError: of the first that could not be removed; all were tried.
    """
    failures = []
    for path in _unfinished(out_dir, ".tmp", ".deleting"):
        try:
            shutil.rmtree(path)
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def finish_renames(out_dir: Path) -> None:
    """Publish what a crash left between its manifest and its rename: it is complete, if it verifies."""
    for temporary in _unfinished(out_dir, ".tmp"):
        folder = temporary.with_suffix("")
        if _looks_complete(temporary) and not os.path.lexists(folder):
            rename(temporary, folder)


def reject(folder: Path, suffix: str, reason: str) -> Path:
    """Rename a checkpoint to `*.<suffix>` and put the reason beside it, in `*.<suffix>.txt`."""
    check_kind(folder)
    target = _free_name(folder, suffix)
    target.with_name(target.name + ".txt").write_text(reason + "\n")
    return rename(folder, target)


def damaged(out_dir: Path) -> list[Path]:
    """The checkpoints that were renamed because they are damaged."""
    return sorted(path for path in out_dir.glob("iter-*-ckpt.pth.damaged*") if path.is_dir())


def _named(out_dir: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """(suffix, entry) of all with the name of a checkpoint, or of one being written or deleted."""
    with os.scandir(out_dir) as entries:
        found = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
    return sorted(((match[1] or "", entry) for match, entry in found if match), key=lambda pair: pair[1].name)


def _unfinished(out_dir: Path, *suffixes: str) -> list[Path]:
    """Folders that are being written or deleted; a file or link of such a name is not ours."""
    return [
        Path(entry.path)
        for suffix, entry in _named(out_dir)
        if suffix.startswith(suffixes) and entry.is_dir(follow_symlinks=False)
    ]


def _looks_complete(folder: Path) -> bool:
    try:
        check_files(folder, read_manifest(folder))
    except DamagedCheckpoint:
        return False
    return True


def _free_name(folder: Path, suffix: str) -> Path:
    target = folder.with_name(f"{folder.name}.{suffix}")
    number = 1
    while os.path.lexists(target) or os.path.lexists(f"{target}.txt"):
        number += 1
        target = folder.with_name(f"{folder.name}.{suffix}-{number}")
    return target
