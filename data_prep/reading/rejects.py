"""Count and name the lines that cannot be used."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lit_gpt.cli import InputError

MAX_LINE_BYTES = 32 << 20
TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"
UNREADABLE = "unreadable"
"""Prefix of the reason if the rest of a file, or of a row group, is lost."""
_LOSSES_SHOWN = 10


class Rejected(NamedTuple):
    """A line, or the rest of a file, that cannot be used."""

    line: int
    reason: str
    """The same text for all of its kind, so that they can be counted."""
    lines: int = 1
    """Number of lines lost; an estimate if the rest of a file is lost."""
    detail: str = ""
    """How much was read, and how much is missing."""


@dataclass
class Rejects:
    """Unusable lines: their places, and counts by reason."""

    limit: int = 1000
    """Most lines that may be rejected."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """(file:line, reason)"""
    counts: dict[str, int] = field(default_factory=dict)
    """Lines by reason; more than `places` if the rest of a file cannot be read."""

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = dict(Counter(reason for _, reason in self.places))

    def add(self, file: Path | str, rejected: Rejected) -> None:
        """Record one place.

        Raises:
            InputError: the limit is exceeded.
        """
        reason = f"{rejected.reason} ({rejected.detail})" if rejected.detail else rejected.reason
        place = f"{file}:{rejected.line}"
        self.places.append((place, reason))
        self.counts[rejected.reason] = self.counts.get(rejected.reason, 0) + rejected.lines
        if sum(self.counts.values()) > self.limit:
            hint = "fix the input or raise --max_bad_lines"
            raise InputError(f"more than {self.limit} unusable lines, the last {place}: {reason}; {hint}")

    def losses(self) -> list[str]:
        """Places where the rest of a file is lost, and how much of it."""
        return [f"{place}: {reason}" for place, reason in self.places if reason.startswith(UNREADABLE)]


def losses_in_short(losses: list[str]) -> list[str]:
    """A line for each loss, up to a limit."""
    shown = [f"lost: {loss}" for loss in losses[:_LOSSES_SHOWN]]
    return shown + [f"lost: parts of {len(losses) - _LOSSES_SHOWN:,} more files"] * (
        len(losses) > _LOSSES_SHOWN
    )
