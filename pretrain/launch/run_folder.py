"""The folder of a run, apart from what its checkpoints, log and metrics keep in it.

config.yaml     the options it was started with last
requeue, done   how it ended: stopped before its last step, or complete; JSON {"step": N, "reason": ...}
lock            held by the job that trains here
"""

import json
import os
import typing
from pathlib import Path
from typing import IO, Literal

import yaml

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.cli import InputError
from lit_gpt.files import lock, write_atomically
from pretrain.checkpoint.writer import refuse_foreign
from pretrain.options import TrainOptions

Marker = Literal["requeue", "done"]


def prepare(options: TrainOptions) -> IO[str]:
    """Make the folder, note the options and remove what says how the start before ended. For one process.

    Returns:
        What keeps other jobs out until it is closed.

    Raises:
        InputError: it cannot be written, another job trains there, or it holds a run and this one is not to
            continue it.
    """
    out_dir = Path(options.out_dir)
    if options.resume is None and list_checkpoints(out_dir):
        raise InputError(f"--out_dir {out_dir} holds checkpoints: give --resume auto or another folder")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        refuse_foreign(out_dir)
        _refuse_other_kinds(out_dir)
        if (held := lock(out_dir / "lock")) is None:
            raise InputError(
                f"--out_dir {out_dir}: another job trains there; end it, give another folder or, if its node "
                f"died, remove {out_dir / 'lock'}"
            )
        for marker in typing.get_args(Marker):
            (out_dir / marker).unlink(missing_ok=True)
        write_atomically(out_dir / "config.yaml", yaml.safe_dump(options.to_dict()))  # syncs the removal, too
    except OSError as error:
        raise InputError(f"--out_dir {out_dir}: cannot write {error.filename} ({error.strerror})") from error
    return held


def _refuse_other_kinds(out_dir: Path) -> None:
    """A folder or a FIFO where the run needs a file would fail, or hang, hours later."""
    for name in ("lock", "config.yaml", *typing.get_args(Marker), "datapoints"):
        path, fits = out_dir / name, os.path.isdir if name == "datapoints" else os.path.isfile
        if os.path.lexists(path) and not fits(path):
            needed = "folder" if name == "datapoints" else "file"
            raise InputError(
                f"{path} is no {needed}, which a run needs there: move it or give another --out_dir"
            )


def write_marker(out_dir: Path, marker: Marker, step: int, reason: str | None) -> None:
    """Say how the run ended, in one go and on disk: batch scripts act on it."""
    write_atomically(out_dir / marker, json.dumps({"step": step, "reason": reason}) + "\n")
