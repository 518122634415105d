"""What the saving thread does: every rank writes its files, rank 0 completes the folder and lets old ones go.

All of it is collective over the checkpointer's gloo group. A failure on one rank is one on all, and leaves
the checkpoints that were there as they are.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import Manifest
from lit_gpt.checkpoint.tensor_files import MAX_FILE_BYTES, split_into_files, write_tensors
from lit_gpt.cli import InputError
from lit_gpt.files import rename
from lit_gpt.hashed_files import FileEntry
from pretrain.checkpoint import retention
from pretrain.checkpoint.collective import Ranks, verify_together
from pretrain.checkpoint.snapshot import Snapshot


def write_checkpoint(
    ranks: Ranks, folder: Path, step: int, state_dict_type: str, snapshot: Snapshot, state: Mapping[str, Any]
) -> None:
    """Build `<folder>.tmp`, force it to disk, rename it.

    Raises:
        InputError: on all ranks, naming the path and the cause; nothing is left behind.
    """
    temporary = folder.with_name(folder.name + ".tmp")

    def prepare() -> None:
        with suppress(OSError):  # what cannot be removed only takes room; `retain` reports it
            retention.sweep(folder.parent)
        checkpoint.create(folder)

    def finish() -> None:
        checkpoint.seal(temporary, manifest)
        if os.path.lexists(
            folder
        ):  # the same step once more; a crash right here leaves the sealed one for `find`
            retention.doom(folder)
        rename(temporary, folder)

    ranks.first(prepare)
    try:
        parts = ranks.each(lambda: _write_files(ranks, temporary, snapshot, state))
        files = {name: FileEntry(**entry) for part in parts for name, entry in part.items()}
        manifest = Manifest(step, ranks.world_size, state_dict_type, files)
        ranks.first(finish)
    except InputError:
        if ranks.rank == 0:  # what is half written only fills the disk
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def retain(ranks: Ranks, newest: Path, keep_last: int, keep_every: int) -> None:
    """Delete what is surplus, but only when the newest has been read back and verified.

    Raises:
        InputError: on all ranks; the checkpoint just saved is not affected.
    """
    found = ranks.first(lambda: retention.surplus(newest.parent, keep_last, keep_every))
    surplus = [Path(folder) for folder in found]
    if not surplus:
        return

    def remove() -> None:
        for folder in surplus:
            retention.doom(folder)
        retention.sweep(newest.parent)

    verify_together(ranks, newest)
    ranks.first(remove)


def _write_files(
    ranks: Ranks, temporary: Path, snapshot: Snapshot, state: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """This rank's files: entries of the manifest as JSON, by name."""
    written = {}
    for part, pieces in (("model", snapshot.model), ("optim", snapshot.optim)):
        for number, group in enumerate(split_into_files(pieces, MAX_FILE_BYTES)):
            name = f"{part}/rank-{ranks.rank:05d}-{number:03d}.safetensors"
            written[name] = write_tensors(temporary / name, group, pieces.__getitem__)
    if ranks.rank == 0:
        written[checkpoint.STATE] = checkpoint.write_state(temporary, state)
    return {name: asdict(entry) for name, entry in written.items()}
