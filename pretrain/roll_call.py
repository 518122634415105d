"""Ranks exchange answers through a key-value store, and all go on together or all leave.

Unlike a collective it cannot hang: a rank that does not answer in time is named.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

ANSWER_SECONDS = 50.0
EXIT_UNSOUND = 87


class RollCall:
    """One rank's part in it.

    Args:
        store: Shared by all ranks; rank 0 may be its server.
        hosts: Name of each rank's node, to say where a missing rank is.
        answer_seconds: A rank that has not answered for so long is named.
    """

    def __init__(
        self, store: dist.Store, rank: int, hosts: Sequence[str], answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._store = store
        self._rank = rank
        self.hosts = hosts
        self._answer_seconds = answer_seconds

    def stage(self, name: str, answer: Any, patience: float = 0.0) -> list[Any]:
        """Answer, and learn the others' answers. Every rank takes part in every stage.

        Args:
            name: Of the stage, used once.
            answer: This rank's, as JSON can hold it.
            patience: Seconds more than `answer_seconds` that a rank may take once it has been named.

        Returns:
            The answers by rank; the process ends with exit code 87 when some are missing.
        """
        patience += self._answer_seconds
        self._store.set(f"{name}/{self._rank}", json.dumps(answer))
        try:
            missing = (
                self._preside(name, patience) if self._rank == 0 else self._await_verdict(name, patience)
            )
            if missing:
                self.leave(f"no answer from {self._where(missing)} for {patience:.0f} s")
            answers = self._store.multi_get(_keys(name, range(len(self.hosts))))
            self._store.add(f"{name}/read", 1)
            if self._rank == 0:
                self._await_readers(name)
        except dist.DistError:
            # If it left for a reason of its own, its exit code must be the highest: srun takes that.
            leave(f"rank 0 on {self.hosts[0]} does not answer rank {self._rank}", exit_code=1)
        return [json.loads(text) for text in answers]

    def leave(self, complaint: str) -> NoReturn:
        """End all ranks' processes with exit code 87; rank 0 says why. Every rank calls it."""
        if self._rank == 0:
            print(f"error: {complaint}", file=sys.stderr, flush=True)
            time.sleep(2)  # the others may still be reading the store, which may be this process's
        leave()

    def _preside(self, name: str, patience: float) -> list[int]:
        """Rank 0 alone decides who is missing, so that all come to the same verdict."""
        missing = self._await_answers(name, patience)
        self._store.set(f"{name}/missing", json.dumps(missing))
        return missing

    def _await_verdict(self, name: str, patience: float) -> list[int]:
        self._store.wait([f"{name}/missing"], timedelta(seconds=patience + self._answer_seconds))
        return json.loads(self._store.get(f"{name}/missing"))

    def _await_answers(self, name: str, patience: float) -> list[int]:
        """The ranks that have not answered when patience ends."""
        missing = list(range(len(self.hosts)))
        deadline = time.monotonic() + patience
        while missing and (left := deadline - time.monotonic()) > 0:
            try:
                self._store.wait(_keys(name, missing), timedelta(seconds=min(left, self._answer_seconds)))
            except dist.DistError:
                missing = [rank for rank in missing if not self._store.check(_keys(name, [rank]))]
                if missing and deadline > time.monotonic():
                    print(f"still waiting for {self._where(missing)}", file=sys.stderr, flush=True)
            else:
                missing = []
        return missing

    def _await_readers(self, name: str) -> None:
        """The store may be this process's: it must not go before the others have read it."""
        deadline = time.monotonic() + 10
        while self._store.add(f"{name}/read", 0) < len(self.hosts) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _where(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in ranks)


def leave(message: str = "", exit_code: int = EXIT_UNSOUND) -> NoReturn:
    """End this process at once, even when a thread of it hangs in a collective."""
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(exit_code)


def name_all(hosts: Iterable[str]) -> str:
    """Each host once, for a message."""
    return ", ".join(sorted(set(hosts)))


def _keys(name: str, ranks: Sequence[int]) -> list[str]:
    return [f"{name}/{rank}" for rank in ranks]
