"""Ranks exchange answers through a key-value store, and all continue together or all leave.

Unlike a collective it cannot hang: a rank that does not answer in time is named.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.launch.watchdog import Watchdog

ANSWER_SECONDS = 50.0  # a rank that has not answered for so long is named
EXIT_UNSOUND = 87


class RollCall:
    """One rank's part in it.

    Args:
        watchdog: Has the store, and ends all ranks.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._store = watchdog.own_store("roll call")
        self.launch = watchdog.launch

    @property
    def hosts(self) -> list[str]:
        """Name of each rank's node."""
        return self.launch.hosts

    def stage(self, name: str, answer: Any, patience: float = 0.0) -> list[Any]:
        """Answer, and learn the others' answers. Every rank takes part in every stage.

        Args:
            name: Of the stage, used once.
            answer: This rank's, as JSON can hold it.
            patience: Seconds more than ANSWER_SECONDS that a rank may take once it has been named.

        Returns:
            The answers by rank; the process ends with exit code 87 when some are missing.
        """
        patience += ANSWER_SECONDS
        self._store.set(f"{name}/{self.launch.rank}", json.dumps(answer))
        try:
            preside = self.launch.rank == 0
            missing = self._preside(name, patience) if preside else self._await_verdict(name, patience)
            if missing:
                self.leave(f"no answer from {self._where(missing)} for {patience:.0f} s")
            answers = self._store.multi_get(_keys(name, range(self.launch.world_size)))
        except dist.DistError:
            # If rank 0 left for a reason of its own, its exit code must be the highest: srun takes that.
            me, first = self.launch.name(self.launch.rank), self.launch.name(0)
            self._watchdog.end(1, f"{first} does not answer {me}")
        return [json.loads(text) for text in answers]

    def group_store(self) -> dist.Store:
        """For the process group's own keys."""
        return self._watchdog.own_store("process group")

    def leave(self, complaint: str) -> NoReturn:
        """End all ranks, as the machinery is not sound. Every rank may call it."""
        self._watchdog.end(EXIT_UNSOUND, complaint)

    def refuse(self, complaint: str) -> NoReturn:
        """End all ranks, as what they were given is not the same for all. Every rank may call it."""
        self._watchdog.end(EXIT_BAD_INPUT, complaint)

    def _preside(self, name: str, patience: float) -> list[int]:
        """Rank 0 alone decides who is missing, so that all come to the same verdict."""
        missing = self._await_answers(name, patience)
        self._store.set(f"{name}/missing", json.dumps(missing))
        return missing

    def _await_verdict(self, name: str, patience: float) -> list[int]:
        self._store.wait([f"{name}/missing"], timedelta(seconds=patience + ANSWER_SECONDS))
        return json.loads(self._store.get(f"{name}/missing"))

    def _await_answers(self, name: str, patience: float) -> list[int]:
        """The ranks that have not answered when patience ends."""
        missing = list(range(self.launch.world_size))
        deadline = time.monotonic() + patience
        while missing and (left := deadline - time.monotonic()) > 0:
            try:
                self._store.wait(_keys(name, missing), timedelta(seconds=min(left, ANSWER_SECONDS)))
            except dist.DistError:
                missing = [rank for rank in missing if not self._store.check(_keys(name, [rank]))]
                if missing and deadline > time.monotonic():
                    print(f"still waiting for {self._where(missing)}", file=sys.stderr, flush=True)
            else:
                missing = []
        return missing

    def _where(self, ranks: list[int]) -> str:
        return ", ".join(self.launch.name(rank) for rank in ranks)


def name_all(hosts: Iterable[str]) -> str:
    """Each host once, for a message."""
    return ", ".join(sorted(set(hosts)))


def _keys(name: str, ranks: Sequence[int]) -> list[str]:
    return [f"{name}/{rank}" for rank in ranks]
