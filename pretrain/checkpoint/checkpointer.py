"""Saves, finds and loads the checkpoints of a run, on any number of ranks.

Saving: every rank copies its share to the CPU, and training continues; a thread writes and hashes it, forces
it to disk, and rank 0 adds the manifest and renames the folder into place. Loading: every byte is verified
first, each rank reading a part; then each rank reads the rows of the tensors that it holds, by whatever rank
written.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_gpt.checkpoint import folder as checkpoint
from lit_gpt.checkpoint.folder import DamagedCheckpoint, Manifest
from lit_gpt.checkpoint.tensor_files import TensorReader
from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from pretrain.checkpoint import writer
from pretrain.checkpoint.collective import Ranks, verify_together
from pretrain.checkpoint.snapshot import Snapshot, Staging, restore_model, restore_optimizer
from pretrain.monitor.save_errors import SaveErrors
from pretrain.options import TrainOptions


class Checkpointer:
    """The checkpoints of one run.

    Args:
        options: Of these out_dir, which exists, keep_last, keep_every, state_dict_type and async_save.
        ranks: Its group is used by nothing else. Its timeout must exceed the time in which the slowest rank
            writes its share.
        errors: Told of every save, whether it came to disk.
        permanent: Steps whose checkpoints never expire.
    """

    def __init__(
        self, options: TrainOptions, ranks: Ranks, errors: SaveErrors, permanent: Collection[int] = ()
    ) -> None:
        self.out_dir = Path(options.out_dir)
        self._permanent = permanent
        self.ranks = ranks
        self._options = options
        self.errors = errors
        self._staging = Staging(ranks, full=options.state_dict_type == "full")
        self._thread: threading.Thread | None = None
        self._verified: tuple[Path, Manifest] | None = None
        self._on_disk = 0  # step of the state that is; nothing of a run need be kept at step 0

    # ---- saving

    def reserve(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Allocate the memory that `save` copies to."""
        self._staging.reserve(model, optimizer)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        write_logs: Callable[[], None] = lambda: None,
    ) -> None:
        """Take a snapshot and write it (collective); waits first if the previous one is still being written.

        Args:
            state: JSON; rank 0's is stored.
            write_logs: Done before, by every rank; if it fails on one, there is no checkpoint.
        """
        begun = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - begun) > 1:
            self.errors.warn(f"training waited {waited:.0f} s until the checkpoint before was written")
        snapshot = self._staging.take(model, optimizer)
        content = {**state, "step": step, "optimizer": snapshot.scalars}
        self._thread = threading.Thread(
            target=self._write, args=(step, snapshot, content, write_logs), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self._options.async_save:
            self.wait()

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def has_saved(self, step: int) -> bool:
        """Whether the state after a step is on disk; waits for a save under way. The same on every rank."""
        self.wait()
        return self._on_disk == step

    def wait(self) -> None:
        """Until nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the last save (collective).

        Raises:
            InputError: on all ranks, whatever the policy: something that one of them was to write is missing.
        """
        self.wait()
        self.ranks.each(self.errors.close)

    def _write(
        self, step: int, snapshot: Snapshot, state: Mapping[str, Any], write_logs: Callable[[], None]
    ) -> None:
        """The saving thread."""
        folder = self.folder(step)
        try:
            self.ranks.each(write_logs)
            writer.write_checkpoint(self.ranks, folder, step, self._options.state_dict_type, snapshot, state)
        except Exception as error:
            self.errors.failed("checkpoint", f"checkpoint of step {step} was not saved: {error}")
            return
        self.errors.succeeded("checkpoint")
        self._on_disk = step
        try:
            options = self._options
            writer.retain(self.ranks, folder, options.keep_last, options.keep_every, self._permanent)
        except Exception as error:
            self.errors.warn(f"old checkpoints were not removed: {error}")

    def folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.out_dir / checkpoint.folder_name(step)

    # ---- finding

    def find(self, resume: str) -> Path | None:
        """The checkpoint to resume from (collective), verified.

        Args:
            resume: "true": the newest that verifies, an error if there is none; "auto": the same, but None
                where there is none and none was damaged; else a folder. On the way damaged ones are renamed
                to `*.damaged`, the reason beside them.

        Raises:
            DamagedCheckpoint: the folder that was named is damaged.
            InputError: there is none, or all there were are damaged.
        """
        if resume not in ("true", "auto"):
            self._verify(Path(resume))
            return Path(resume)
        self.ranks.first(lambda: writer.finish_renames(self.out_dir))
        for _, folder in reversed(self._list_checkpoints()):
            try:
                self._verify(folder)
                return folder
            except DamagedCheckpoint as damage:
                self._reject(folder, "damaged", str(damage))
        if damaged := self.ranks.first(lambda: writer.damaged(self.out_dir)):
            raise InputError(
                f"{self.out_dir}: no checkpoint is complete ({damaged[-1]}.txt says why): restore one, or "
                "train anew in another folder"
            )
        if resume == "true":
            raise InputError(
                f"--resume true: no valid checkpoint in {self.out_dir}; --resume auto starts anew"
            )
        return None

    def _list_checkpoints(self) -> list[tuple[int, Path]]:
        """Those that rank 0 sees."""
        found = self.ranks.first(lambda: checkpoint.list_checkpoints(self.out_dir))
        return [(step, Path(folder)) for step, folder in found]

    def _verify(self, folder: Path) -> Manifest:
        manifest = verify_together(self.ranks, folder)
        self._verified = (folder, manifest)
        return manifest

    def _reject(self, folder: Path, suffix: str, reason: str) -> None:
        target = self.ranks.first(lambda: writer.reject(folder, suffix, reason))
        self.errors.warn(f"checkpoint renamed to {target}: {reason}")

    # ---- loading

    def load(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        expected: Mapping[str, Any] | None = None,
        fresh_optimizer: bool = False,
    ) -> dict[str, Any]:
        """Put a checkpoint into the model and, if given, the optimizer (collective); verified before.

        With an optimizer the run continues from here: later checkpoints in `out_dir`, of an attempt that was
        given up, are renamed to `*.superseded`, so that `auto` never goes back to them.

        Args:
            expected: What the checkpoint's state must say, by key.
            fresh_optimizer: Leave the optimizer as it is.

        Returns:
            The state that was given to `save`.

        Raises:
            InputError: damaged, or of another model or run; the first difference is named.
        """
        if self._verified is not None and self._verified[0] == folder:
            manifest = self._verified[1]
        else:
            manifest = self._verify(folder)
        state = checkpoint.read_state(folder)
        scalars = state.pop("optimizer", None)
        if differences := list(_differences("", expected or {}, _comparable(state, folder))):
            raise InputError(f"{folder} belongs to another run: {'; '.join(differences)}")
        restore_model(model, TensorReader(folder, manifest.of_parts(["model"])), exact=optimizer is not None)
        if optimizer is not None:
            if scalars is None:
                raise InputError(f"{folder} holds weights only; start from it with --initial_checkpoint_dir")
            if not fresh_optimizer:
                reader = TensorReader(folder, manifest.of_parts(["optim"]))
                restore_optimizer(model, optimizer, reader, scalars)
            for step, later in self._list_checkpoints():
                if step > state["step"]:
                    self._reject(later, "superseded", f"the run was resumed from {folder}")
            self._on_disk = state["step"]
        return state


def _comparable(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A state with the defaults of the model's fields that the revision which saved it did not have."""
    if "model" not in state:
        return state
    config = ModelConfig.from_dict({"name": "", **state["model"]}, origin=str(folder))
    return {**state, "model": config.to_dict()}


def _differences(prefix: str, expected: Any, found: Any) -> Iterator[str]:
    """Where a checkpoint's state is not what this run expects."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in expected:
            yield from _differences(f"{prefix}.{key}" if prefix else key, expected[key], found.get(key))
    elif expected != found:
        yield f"{prefix} is {found} in the checkpoint, {expected} here"
