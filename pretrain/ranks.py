"""The ranks that save and load together: what one does, all learn of; what fails on one, fails on all."""

import socket
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from lit_gpt.checkpoint import DamagedCheckpoint
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
        outcome: tuple[ResultT | None, type[InputError] | None, str] = (None, None, "")
        try:
            outcome = (work(), None, "")
        except (OSError, InputError) as error:
            outcome = (None, _kind(error), self._describe(error))
        outcomes = [outcome]
        if self.group is not None:
            outcomes = [outcome] * self.world_size
            dist.all_gather_object(outcomes, outcome, group=self.group)
        for _, kind, message in outcomes:
            if kind is not None:
                raise kind(message)
        return [result for result, _, _ in outcomes]  # type: ignore[misc]

    def first(self, work: Callable[[], ResultT]) -> ResultT:
        """Do the work on rank 0 alone (collective) and return its result on every rank."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def _describe(self, error: Exception) -> str:
        where = f" (rank {self.rank} on {socket.gethostname()})" if self.world_size > 1 else ""
        if isinstance(error, OSError):
            return f"{error.filename}: {error.strerror}{where}"
        return f"{error}{where}"


def _kind(error: Exception) -> type[InputError]:
    return DamagedCheckpoint if isinstance(error, DamagedCheckpoint) else InputError
