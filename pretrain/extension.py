"""The extended vocabulary of the weights that a run starts from; every checkpoint of the run records it too.

`[new]` in `trainable` stands for the rows from its first new id on, padding included. It is resolved with the
stages, so that the rows are numbers in the run's own state.json and wherever patterns are compared.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint.folder import DamagedCheckpoint, list_checkpoints, read_state
from pretrain.options import TrainOptions

NEW = "[new]"


def recorded_extension(options: TrainOptions) -> dict[str, Any] | None:
    """`base` and `first_new_id`, as the checkpoint that is continued or started from has them.

    None where no vocabulary was extended. What cannot be read is reported when it is loaded.
    """
    for folder in _origins(options):
        with suppress(DamagedCheckpoint):
            if found := read_state(folder).get("extension"):
                return found
    return None


def with_new_rows(options: TrainOptions) -> TrainOptions:
    """Write `[new]` as a range of rows; leave it, for an error that says so, where nothing is new."""
    patterns = options.trainable or []
    if not any(pattern.endswith(NEW) for pattern in patterns):
        return options
    if (extension := recorded_extension(options)) is None:
        return options
    rows = f"[{extension['first_new_id']}:]"
    resolved = [
        pattern.removesuffix(NEW) + rows if pattern.endswith(NEW) else pattern for pattern in patterns
    ]
    return dataclasses.replace(options, trainable=resolved)


def _origins(options: TrainOptions) -> Iterator[Path]:
    """Where the weights may be from, the run's own checkpoints first: the initial one may be gone by then."""
    if options.resume not in (None, "auto", "true"):
        yield Path(str(options.resume))
    elif options.resume:
        yield from (folder for _, folder in reversed(list_checkpoints(Path(options.out_dir))))
    if options.initial_checkpoint_dir is not None:
        yield Path(options.initial_checkpoint_dir)
