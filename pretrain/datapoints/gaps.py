"""Does the datapoint log have every step up to a checkpoint? Told from the footers of its parts."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from lit_gpt.cli import InputError
from pretrain.datapoints.files import DataFile, Gap, discard, part_files, read_data, steps_and_rows

_OR_ACCEPT = "or give --accept_log_gap to continue without"


def check_log(folder: Path, step: int, was_logged: bool, accept_gap: bool) -> DataFile:
    """What data.json is to say of the steps up to `step`, after which a run continues.

    Args:
        was_logged: Whether the run that saved the checkpoint wrote this log.
        accept_gap: Note what is missing as a gap, and discard what cannot be read.

    Raises:
        InputError: not `accept_gap`, and data.json or rows of some steps are missing or cannot be read.
    """
    path, parts = folder / "data.json", part_files(folder)
    if step == 0 or not (was_logged or parts or path.exists()):
        return DataFile(0, [], [])
    try:
        size, segments, gaps = read_data(folder)
    except InputError as error:
        if not accept_gap:
            raise InputError(f"{error}, {_OR_ACCEPT} what is logged so far") from error
        for file in [*parts, *([path] if path.exists() else [])]:
            discard(file)
        return DataFile(0, [], [Gap(1, step, "log lost")])
    segments = [segment for segment in segments if segment.first_step <= step]
    gaps = [
        Gap(gap.first_step, min(gap.last_step, step), gap.reason) for gap in gaps if gap.first_step <= step
    ]
    covered = [*_readable(parts, accept_gap), *((gap.first_step, gap.last_step, size) for gap in gaps)]
    missing = _missing(covered, size, segments[0].first_step, step) if segments else []
    if missing and not was_logged and missing[-1][1] == step:
        gaps.append(Gap(*missing.pop(), "not logged"))
    if missing and not accept_gap:
        steps = ", ".join(f"{first}-{last}" for first, last in missing)
        raise InputError(
            f"{folder} has lost rows of steps {steps}: restore its parts from a copy of the run, "
            f"{_OR_ACCEPT} them"
        )
    gaps += [Gap(first, last, "log lost") for first, last in missing]
    return DataFile(size, segments, sorted(gaps, key=lambda gap: gap.first_step))


def _readable(parts: list[Path], accept_gap: bool) -> Iterable[tuple[int, int, int]]:
    """First step, last step and rows a step of each part, in which every step has as many: one node's."""
    for part in parts:
        try:
            first, last, rows = steps_and_rows(part)
        except InputError as error:
            if not accept_gap:
                raise InputError(f"{error}, {_OR_ACCEPT} it") from error
            discard(part)
        else:
            yield first, last, rows // max(last - first + 1, 1)


def _missing(
    covered: list[tuple[int, int, int]], size: int, first_step: int, last_step: int
) -> list[tuple[int, int]]:
    """First and last of the steps that have fewer than `size` rows."""
    change: defaultdict[int, int] = defaultdict(int)
    for first, last, rows in covered:
        change[first] += rows
        change[last + 1] -= rows
    missing: list[tuple[int, int]] = []
    rows = 0
    for begin, end in pairwise(sorted({*change, first_step, last_step + 1})):
        rows += change[begin]
        if rows < size and first_step <= begin <= last_step:
            if missing and missing[-1][1] == begin - 1:
                begin = missing.pop()[0]
            missing.append((begin, end - 1))
    return missing
