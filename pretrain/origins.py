"""What a run takes over from the checkpoint that it continues or starts from, to record it in its own."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint.folder import DamagedCheckpoint, list_checkpoints, read_state
from pretrain.options import TrainOptions


def recorded(options: TrainOptions, name: str) -> dict[str, Any] | None:
    """An entry of `state.json` that is not in every checkpoint: `extension` or `chat`.

    None where there is none. What cannot be read is reported when it is loaded.
    """
    for folder in _origins(options):
        with suppress(DamagedCheckpoint):
            if found := read_state(folder).get(name):
                return found
    return None


def _origins(options: TrainOptions) -> Iterator[Path]:
    """Where the weights may be from, the run's own checkpoints first: the initial one may be gone by then."""
    if options.resume not in (None, "auto", "true"):
        yield Path(str(options.resume))
    elif options.resume:
        yield from (folder for _, folder in reversed(list_checkpoints(Path(options.out_dir))))
    if options.initial_checkpoint_dir is not None:
        yield Path(options.initial_checkpoint_dir)
