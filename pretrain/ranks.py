"""The ranks that save and load together: what one does, all learn of; what fails on one, fails on all."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from lit_gpt.checkpoint import DamagedCheckpoint, Manifest, check_files, check_hashes, read_manifest
from lit_gpt.cli import InputError

ResultT = TypeVar("ResultT")


class Ranks(NamedTuple):
    """This rank among its peers. The group is gloo, and nobody else uses it: a thread of ours waits on it."""

    group: dist.ProcessGroup | None
    rank: int
    world_size: int

    def each(self, work: Callable[[], ResultT]) -> list[ResultT]:
        """Do the work on every rank (collective) and return the results of all.

        Raises:
            DamagedCheckpoint, InputError: on every rank, if the work failed on any of them.
        """
        outcome: tuple[ResultT | None, type[InputError] | None, str]
        try:
            outcome = (work(), None, "")
        except Exception as error:  # of any kind: the others wait for this rank's answer
            kind = DamagedCheckpoint if isinstance(error, DamagedCheckpoint) else InputError
            outcome = (None, kind, self._describe(error))
        outcomes = [outcome]
        if self.group is not None:
            outcomes = [outcome] * self.world_size
            dist.all_gather_object(outcomes, outcome, group=self.group)
        for _, failed, message in outcomes:
            if failed is not None:
                raise failed(message)
        return [result for result, _, _ in outcomes]  # type: ignore[misc]

    def first(self, work: Callable[[], ResultT]) -> ResultT:
        """Do the work on rank 0 alone (collective) and return its result on every rank."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def _describe(self, error: Exception) -> str:
        message = str(error) if isinstance(error, InputError) else repr(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        # What differs between nodes: disks, mounts, rights. What rank 0 sees needs no name.
        return f"{message} (rank {self.rank} on {socket.gethostname()})" if self.rank > 0 else message


def verify_together(ranks: Ranks, folder: Path) -> Manifest:
    """`lit_gpt.checkpoint.verify`, each rank reading a share of the bytes (collective).

    Raises:
        DamagedCheckpoint: naming the file and the reason.
        InputError: a file cannot be read, on which host.
    """

    def list_files() -> Manifest:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        return manifest

    manifest = ranks.first(list_files)
    by_size = sorted(manifest.files.items(), key=lambda item: -item[1].size)
    ranks.each(lambda: check_hashes(folder, dict(by_size[ranks.rank :: ranks.world_size])))
    return manifest
