"""Name and count the lines and records that cannot be used, and say in short what is lost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.reading.batches import UNREADABLE, Rejected
from lit_gpt.cli import InputError

LEFT_OUT = "left out"
"""Prefix of the reason for a sound record that a command does not want; no number of them is too many."""
_LOSSES_SHOWN = 10
_DETAIL_SHOWN = 200  # characters; a URI may have as many as its record


@dataclass
class Rejects:
    """Unusable lines: their places, and counts by reason."""

    limit: int = 1000
    """Most lines that may be rejected."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """(file:line, reason)"""
    counts: dict[str, int] = field(default_factory=dict)
    """Lines by reason; more than `places` if the rest of a file cannot be read."""

    def add(self, file: Path | str, rejected: Rejected) -> None:
        """Record one place.

        Raises:
            InputError: the limit is exceeded.
        """
        detail = rejected.detail[:_DETAIL_SHOWN]
        reason = f"{rejected.reason} ({detail})" if detail else rejected.reason
        place = f"{file}:{rejected.line}"
        self.places.append((place, reason))
        self.counts[rejected.reason] = self.counts.get(rejected.reason, 0) + rejected.lines
        bad = (lines for reason, lines in self.counts.items() if not reason.startswith(LEFT_OUT))
        if sum(bad) > self.limit:
            hint = "fix the input or raise --max_bad_lines"
            raise InputError(f"more than {self.limit} unusable lines, the last {place}: {reason}; {hint}")

    def leave_out(self, what: str) -> None:
        """Count a record that no command wants, without its place."""
        reason = f"{LEFT_OUT}: {what}"
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def losses(self) -> list[str]:
        """Places where the rest of a file is lost, and how much of it."""
        return [f"{place}: {reason}" for place, reason in self.places if reason.startswith(UNREADABLE)]


def reject_in_short(reason: str, settings: Mapping[str, Any]) -> str:
    """What is said beside the number of lines, or of records where `settings` name the extractor of pages."""
    unit = "records" if "extractor" in settings else "lines"
    return reason if reason.startswith(LEFT_OUT) else f"{unit} rejected: {reason}"


def losses_in_short(losses: list[str]) -> list[str]:
    """A line for each loss, up to a limit."""
    shown, more = losses[:_LOSSES_SHOWN], len(losses) - _LOSSES_SHOWN
    lines = [f"lost: {loss}" for loss in shown]
    return lines if more <= 0 else [*lines, f"lost: parts of {more:,} more files"]
