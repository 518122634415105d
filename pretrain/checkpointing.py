"""Saves, finds and loads the checkpoints of a run, on any number of ranks.

Saving: every rank copies its share to the CPU, and training goes on; a thread writes and hashes it, forces
it to disk, and rank 0 puts the manifest on top and gives the folder its name. Loading: every byte is verified
first, each rank taking a part; then each rank reads the boxes of the tensors that it holds, whoever wrote
them.
"""

import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_gpt import checkpoint
from lit_gpt.checkpoint import DamagedCheckpoint, FileEntry, Manifest
from lit_gpt.cli import InputError
from lit_gpt.tensor_files import TensorReader, TensorSpec, write_tensors
from pretrain import retention
from pretrain.ranks import Ranks
from pretrain.snapshot import Snapshot, Staging, restore_model, restore_optimizer

MAX_FILE_BYTES = 4 << 30  # so that several ranks can share the verification of a full set


class SaveFailed(InputError):
    """A checkpoint could not be written. The message names the path and the cause."""


class Checkpointer:
    """The checkpoints of one run.

    Args:
        out_dir: Folder of the run; it exists.
        process_group: A gloo group of all ranks that nothing else uses; None for one process.
        keep_last: How many of the newest checkpoints stay; 0: all.
        keep_every: Checkpoints whose step is a multiple of it stay for ever; 0: none.
        state_dict_type: "sharded", every rank writes its part, or "full", rank 0 writes one set.
        asynchronous: Write while training goes on.
        on_save_error: "stop": `poll`, `wait` and the next `save` raise; "continue": they report it.
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        process_group: dist.ProcessGroup | None,
        rank: int,
        world_size: int,
        keep_last: int,
        keep_every: int,
        state_dict_type: str,
        asynchronous: bool,
        on_save_error: str,
    ) -> None:
        self.out_dir = Path(out_dir)
        self._ranks = Ranks(process_group, rank, world_size)
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._state_dict_type = state_dict_type
        self._asynchronous = asynchronous
        self._stop_on_error = on_save_error == "stop"
        self._staging = Staging(self._ranks, full=state_dict_type == "full")
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._verified: Path | None = None

    # ---- saving

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Take a snapshot (collective) and write it; at most one is being written at a time.

        Args:
            state: JSON; rank 0's is stored.

        Raises:
            SaveFailed: by policy, this or the previous checkpoint could not be written.
        """
        self.wait()
        snapshot = self._staging.take(model, optimizer)
        content = {**state, "step": step, "optimizer": snapshot.scalars}
        self._thread = threading.Thread(
            target=self._write, args=(step, snapshot, content), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def poll(self) -> None:
        """Report a failed save without waiting for one that is under way.

        Raises:
            SaveFailed: by policy.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written any more.

        Raises:
            SaveFailed: by policy.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None and self._stop_on_error:
            raise SaveFailed(failure)
        if failure is not None:
            self._report(f"{failure}; the run goes on")

    def _write(self, step: int, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
        """The saving thread. Whatever goes wrong is kept for the next `poll`."""
        folder = self.out_dir / checkpoint.folder_name(step)
        try:
            self._build(folder, step, snapshot, state)
        except Exception as error:
            self._failure = f"checkpoint of step {step} was not saved: {error}"
            return
        try:
            self._retain(folder)
        except Exception as error:
            self._report(f"old checkpoints were not removed: {error}")

    def _build(self, folder: Path, step: int, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
        ranks = self._ranks
        temporary = folder.with_name(folder.name + ".tmp")
        try:
            ranks.first(lambda: self._prepare(folder))
            parts = ranks.each(lambda: self._write_files(temporary, snapshot, state))
            files = {name: entry for part in parts for name, entry in part.items()}
            manifest = Manifest(step, ranks.world_size, self._state_dict_type, files)
            ranks.first(lambda: _finish(temporary, folder, manifest))
        except InputError:
            if ranks.rank == 0:  # makes room on a full disk
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _prepare(self, folder: Path) -> None:
        retention.sweep(self.out_dir)
        checkpoint.create(folder)

    def _write_files(
        self, temporary: Path, snapshot: Snapshot, state: Mapping[str, Any]
    ) -> dict[str, FileEntry]:
        """This rank's files, by name."""
        written = {}
        for part, pieces in (("model", snapshot.model), ("optim", snapshot.optim)):
            for number, group in enumerate(_files(pieces)):
                name = f"{part}/rank-{self._ranks.rank:05d}-{number:03d}.safetensors"
                tensors = {spec.name: tensor for spec, tensor in group}
                written[name] = write_tensors(
                    temporary / name, [spec for spec, _ in group], lambda spec, t=tensors: t[spec.name]
                )
        if self._ranks.rank == 0:
            written[checkpoint.STATE] = checkpoint.write_state(temporary, state)
        return written

    def _retain(self, newest: Path) -> None:
        """Delete what is surplus, but only when the newest has been read back and verified."""
        ranks = self._ranks
        surplus = ranks.first(lambda: retention.surplus(self.out_dir, self._keep_last, self._keep_every))
        if surplus:
            self._verify(newest)
            ranks.first(lambda: self._remove(surplus))

    def _remove(self, folders: list[Path]) -> None:
        for folder in folders:
            retention.doom(folder)
        retention.sweep(self.out_dir)

    # ---- finding

    def find(self, resume: str) -> Path | None:
        """The checkpoint to resume from (collective), verified.

        Args:
            resume: "true": the newest that verifies, an error if there is none; "auto": the newest if any;
                else a folder. On the way damaged ones are renamed to `*.damaged`, the reason beside them.

        Raises:
            DamagedCheckpoint: the folder that was named is damaged.
            InputError: there is none, or a file cannot be read.
        """
        if resume not in ("true", "auto"):
            self._verify(Path(resume))
            return Path(resume)
        self._ranks.first(self._finish_renames)
        for _, folder in reversed(self._ranks.first(lambda: checkpoint.list_checkpoints(self.out_dir))):
            try:
                self._verify(folder)
                return folder
            except DamagedCheckpoint as damage:
                reason = str(damage)
            self._set_aside(folder, "damaged", reason)
        if resume == "true":
            raise InputError(
                f"--resume true: no valid checkpoint in {self.out_dir}; --resume auto starts anew"
            )
        return None

    def _finish_renames(self) -> None:
        """A crash between manifest and rename leaves a whole checkpoint under its temporary name."""
        for temporary in self.out_dir.glob("iter-*-ckpt.pth.tmp"):
            folder = temporary.with_suffix("")
            if (temporary / checkpoint.MANIFEST).exists() and not folder.exists():
                temporary.rename(folder)

    def _set_aside(self, folder: Path, suffix: str, reason: str) -> None:
        target = self._ranks.first(lambda: retention.set_aside(folder, suffix, reason))
        self._report(f"checkpoint set aside as {target}: {reason}")

    def _verify(self, folder: Path) -> None:
        """Read every byte, each rank its share (collective)."""
        ranks = self._ranks
        manifest = ranks.first(lambda: _read_manifest(folder))
        mine = sorted(manifest.files, key=lambda name: -manifest.files[name].size)[
            ranks.rank :: ranks.world_size
        ]
        ranks.each(lambda: checkpoint.check_hashes(folder, {name: manifest.files[name] for name in mine}))
        self._verified = folder

    # ---- loading

    def load(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        expected: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Put a checkpoint into the model and, if given, the optimizer (collective); verified before.

        Args:
            expected: What the checkpoint's state must say, by key.

        Returns:
            The state that was given to `save`.

        Raises:
            InputError: damaged, or of another model or run; the first difference is named.
        """
        if folder != self._verified:
            self._verify(folder)
        state = checkpoint.read_state(folder)
        scalars = state.pop("optimizer", None)
        if differences := list(_differences("", expected or {}, state)):
            raise InputError(f"{folder} belongs to another run: {'; '.join(differences)}")
        restore_model(model, TensorReader(folder / "model"), exact=optimizer is not None)
        if optimizer is not None:
            if scalars is None:
                raise InputError(f"{folder} holds weights only; start from it with --initial_checkpoint_dir")
            restore_optimizer(model, optimizer, TensorReader(folder / "optim"), scalars)
            self._supersede(folder, state["step"])
        return state

    def _supersede(self, resumed: Path, step: int) -> None:
        """Set aside what an earlier attempt saved after this step: `auto` must never go back to it."""
        for later, folder in self._ranks.first(lambda: checkpoint.list_checkpoints(self.out_dir)):
            if later > step:
                self._set_aside(folder, "superseded", f"the run was resumed from {resumed}, which is earlier")

    def _report(self, message: str) -> None:
        if self._ranks.rank == 0:
            print(f"warning: {message}", file=sys.stderr, flush=True)


def _finish(temporary: Path, folder: Path, manifest: Manifest) -> None:
    checkpoint.seal(temporary, manifest)
    if folder.exists():  # of the same step; a crash right here leaves the sealed one, which `find` publishes
        retention.doom(folder)
    checkpoint.publish(temporary, folder)


def _read_manifest(folder: Path) -> Manifest:
    manifest = checkpoint.read_manifest(folder)
    checkpoint.check_files(folder, manifest)
    return manifest


def _files(pieces: list[tuple[TensorSpec, Tensor]]) -> Iterator[list[tuple[TensorSpec, Tensor]]]:
    """Cut into files of at most MAX_FILE_BYTES, or one tensor."""
    group: list[tuple[TensorSpec, Tensor]] = []
    n_bytes = 0
    for spec, tensor in pieces:
        if group and n_bytes + spec.n_bytes > MAX_FILE_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append((spec, tensor))
        n_bytes += spec.n_bytes
    if group:
        yield group


def _differences(prefix: str, expected: Any, found: Any) -> Iterator[str]:
    """Where a checkpoint's state is not what this run expects."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in expected:
            yield from _differences(f"{prefix}.{key}" if prefix else key, expected[key], found.get(key))
    elif expected != found:
        yield f"{prefix} is {found} in the checkpoint, {expected} here"
