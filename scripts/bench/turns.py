"""Measure alternatives in turns, so that whatever else the machine does disturbs all of them alike."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from lit_gpt.cli import progress

Name = TypeVar("Name")
Figure = TypeVar("Figure")


def in_turns(
    alternatives: Mapping[Name, Callable[[], Figure]], rounds: int, show_progress: bool = False
) -> dict[Name, list[Figure]]:
    """Call every function once per round and collect what each returns; compare the medians.

    The order changes from round to round, the same way in every call: in one process, the predecessor
    changes a turn by several per cent.
    """
    draw = random.Random(0)
    order = [name for _ in range(rounds) for name in draw.sample(list(alternatives), len(alternatives))]
    figures: dict[Name, list[Figure]] = {name: [] for name in alternatives}
    for name in progress(order, description="turns", unit="turn") if show_progress else order:
        figures[name].append(alternatives[name]())
    return figures
