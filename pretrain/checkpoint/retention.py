"""Which checkpoints stay, and how the others go: by a rename first, so that nothing half gone looks whole."""

import os
import re
import shutil
from pathlib import Path

from lit_gpt.checkpoint.folder import (
    DamagedCheckpoint,
    check_files,
    check_kind,
    list_checkpoints,
    read_manifest,
)
from lit_gpt.files import rename

_NAME = re.compile(r"iter-\d{8,}-ckpt\.pth(\.tmp|\.deleting(-\d+)?)?")


def refuse_foreign(out_dir: Path) -> None:
    """See that nothing stands in the way of saving, before hours are spent.

    Raises:
        InputError: naming a file or a link with the name of a checkpoint, or of one half written or removed.
    """
    for _, entry in _named(out_dir):
        if not entry.is_dir(follow_symlinks=False):
            check_kind(Path(entry.path))


def surplus(out_dir: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Checkpoints that may go, oldest first.

    Kept are the newest `keep_last` (0: all) and every one whose step is a multiple of `keep_every` (0: none).
    One that does not look whole neither counts nor goes: it is for `find` to set it aside.
    """
    whole = [
        (step, folder)
        for step, folder in list_checkpoints(out_dir)
        if not folder.is_symlink() and _looks_whole(folder)
    ]
    candidates = whole[:-keep_last] if keep_last else []
    return [folder for step, folder in candidates if not (keep_every and step % keep_every == 0)]


def doom(folder: Path) -> Path:
    """Rename a checkpoint to `*.deleting`, which nobody takes for whole and `sweep` removes."""
    check_kind(folder)
    return rename(folder, _free_name(folder, "deleting"))


def sweep(out_dir: Path) -> None:
    """Remove what is to go, and what crashes left half built.

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
    """Publish what a crash left between its manifest and its rename: it is whole, if it verifies."""
    for temporary in _unfinished(out_dir, ".tmp"):
        folder = temporary.with_suffix("")
        if _looks_whole(temporary) and not os.path.lexists(folder):
            rename(temporary, folder)


def set_aside(folder: Path, suffix: str, reason: str) -> Path:
    """Rename a checkpoint to `*.<suffix>` and put the reason beside it, in `*.<suffix>.txt`."""
    check_kind(folder)
    target = _free_name(folder, suffix)
    target.with_name(target.name + ".txt").write_text(reason + "\n")
    return rename(folder, target)


def damaged(out_dir: Path) -> list[Path]:
    """The checkpoints that were set aside as damaged."""
    return sorted(path for path in out_dir.glob("iter-*-ckpt.pth.damaged*") if path.is_dir())


def _named(out_dir: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """(suffix, entry) of all that has the name of a checkpoint, or of one half written or removed."""
    with os.scandir(out_dir) as entries:
        found = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
    return sorted(((match[1] or "", entry) for match, entry in found if match), key=lambda pair: pair[1].name)


def _unfinished(out_dir: Path, *suffixes: str) -> list[Path]:
    """The folders between a checkpoint and nothing; what else has such a name is not ours."""
    return [
        Path(entry.path)
        for suffix, entry in _named(out_dir)
        if suffix.startswith(suffixes) and entry.is_dir(follow_symlinks=False)
    ]


def _looks_whole(folder: Path) -> bool:
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
