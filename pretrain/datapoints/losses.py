"""Mean losses of a span of a run, from its datapoint log: by store, source or length over time, and by step.

A mean weighs each segment by its targets. A segment without a finite loss counts in `Found.unknown` alone.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lit_gpt.errors import InputError
from lit_gpt.store.token_store import TokenStore
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import LoggedSegments, scan

PARTS = 5
"""Into which the steps in view are divided, to show how a loss changes."""


class Steps(NamedTuple):
    """The steps in view, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str | None, last_step: int) -> "Steps":
        """`A-B`, or all steps of a log when not given.

        Raises:
            InputError: these are no steps of it.
        """
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", f"1-{last_step}" if text is None else text)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first <= min(last, last_step):
            raise InputError(f"--steps {text}: give A-B, steps of the log, which ends at step {last_step}")
        return cls(first, min(last, last_step))

    @property
    def size(self) -> int:
        return self.last + 1 - self.first

    @property
    def n_parts(self) -> int:
        return min(PARTS, self.size)

    def part_of(self, step: np.ndarray) -> np.ndarray:
        """The number of the part that each step (n,) is in."""
        return (step - self.first) * self.n_parts // self.size

    def parts(self) -> list["Steps"]:
        """The parts, as `part_of` has them."""
        starts = [self.first + -(-n * self.size // self.n_parts) for n in range(self.n_parts + 1)]
        return [Steps(begin, end - 1) for begin, end in itertools.pairwise(starts)]


@dataclass
class Found:
    """What a scan has summed up."""

    steps: Steps
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """By group, float64 (n_parts, 3), or of steps (n_steps, 3): segments, targets, losses times targets."""
    known: int = 0
    unknown: int = 0
    """Segments without a loss: it was not logged or not finite, or none of their labels counts."""

    def with_loss(self, logged: LoggedSegments, where: np.ndarray) -> np.ndarray:
        """Those of the positions `where` (n,) whose segment has a loss; counts both kinds."""
        finite = where[np.isfinite(logged.loss[where])]
        self.known += finite.size
        self.unknown += where.size - finite.size
        return finite

    def add(self, group: str, rows: np.ndarray, logged: LoggedSegments, where: np.ndarray) -> None:
        """Add the segments at the positions `where` (n,) to these rows (n,) of a group's sums."""
        n_rows, targets = self._n_rows(), logged.targets[where].astype(np.float64)
        sums = self.sums.setdefault(group, np.zeros((n_rows, 3)))
        for column, weights in enumerate((None, targets, targets * logged.loss[where])):
            sums[:, column] += np.bincount(rows, weights, n_rows)

    def _n_rows(self) -> int:
        return self.steps.n_parts


class FoundBySteps(Found):
    """Sums of every step, in one group. Memory: 24 bytes a step."""

    def _n_rows(self) -> int:
        return self.steps.size


def losses_by_step(replay: Replay, steps: Steps) -> Found:
    """The sums of every step, of all its segments, in the group ""."""
    found = FoundBySteps(steps)
    for logged in scan(replay, *steps, bar=True):
        where = found.with_loss(logged, np.arange(logged.loss.size))
        found.add("", logged["step"][where] - steps.first, logged, where)
    return found


def losses_by_group(replay: Replay, steps: Steps, by: str) -> Found:
    """The sums of each `store`, `source` or `length` in each part of the steps."""
    found = Found(steps)
    for logged in scan(replay, *steps, bar=True):
        part = steps.part_of(logged["step"])
        for name, of_group in _by_length(logged) if by == "length" else _by_store(logged, by):
            where = found.with_loss(logged, of_group)
            found.add(name, part[where], logged, where)
    return found


def _by_length(logged: LoggedSegments) -> Iterator[tuple[str, np.ndarray]]:
    """The segments of 1, 2-3, 4-7, ... tokens, masked ones too: name and positions of each group."""
    exponents = np.frexp(logged.rows.length)[1] - 1
    for exponent in np.unique(exponents).tolist():
        name = f"{1 << exponent:,}-{(2 << exponent) - 1:,} tokens" if exponent else "1 token"
        yield name, np.flatnonzero(exponents == exponent)


def _by_store(logged: LoggedSegments, by: str) -> Iterator[tuple[str, np.ndarray]]:
    """The segments of each store or source: name and positions of each group."""
    for number, shard, where in logged.by_shard():
        packed = logged.data.stores[number]
        if by == "store":
            yield packed.name, where
            continue
        names, codes = sources_of(packed.store, shard)
        code_of_segment = codes[logged.rows.document[where]]
        for code in np.unique(code_of_segment).tolist():
            yield names[code], where[code_of_segment == code]


@functools.lru_cache(maxsize=32)  # a run reads few shards at a time
def sources_of(store: TokenStore, shard: int) -> tuple[list[str], np.ndarray]:
    """The sources that a shard has, and for each of its documents (n_documents,) which one it is from."""
    sources = store.sources(shard)
    return sources.dictionary.to_pylist(), sources.indices.to_numpy()
