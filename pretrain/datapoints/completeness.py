"""Is a datapoint log complete up to a checkpoint? Decided by the footers of its parts."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from lit_gpt.errors import InputError
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.periods import DataFile, DataPeriod, Gap, read_data

_OR_ACCEPT = "or give --accept_log_gap to continue without"


def check_log(folder: Path, step: int, was_logged: bool, accept_gap: bool) -> DataFile:
    """What data.json must say of the steps up to `step`, after which a run continues.

    Args:
        was_logged: whether the run that saved the checkpoint wrote this log.
        accept_gap: note what is missing as a gap, and discard what cannot be read.

    Raises:
        InputError: not `accept_gap`, and data.json or rows of some steps are missing or cannot be read.
    """
    path, parts = folder / "data.json", datapoint_files.part_files(folder)
    if step == 0 or not (was_logged or parts or path.exists()):
        return DataFile([], [])
    try:
        periods, gaps = read_data(folder)
    except InputError as error:
        if not accept_gap:
            raise InputError(f"{error}, {_OR_ACCEPT} what is logged so far") from error
        for file in [*parts, *([path] if path.exists() else [])]:
            datapoint_files.discard(file)
        return DataFile([], [Gap(1, step, "log lost")])
    periods = [period for period in periods if period.first_step <= step]
    gaps = [
        Gap(gap.first_step, min(gap.last_step, step), gap.reason) for gap in gaps if gap.first_step <= step
    ]
    missing = _missing(periods, gaps, _readable(parts, accept_gap), step) if periods else []
    if missing and not was_logged and missing[-1][1] == step:
        gaps.append(Gap(*missing.pop(), "not logged"))
    if missing and not accept_gap:
        steps = ", ".join(f"{first}-{last}" for first, last in missing)
        raise InputError(
            f"{folder} has lost rows of steps {steps}: restore its parts from a copy of the run, "
            f"{_OR_ACCEPT} them"
        )
    gaps += [Gap(first, last, "log lost") for first, last in missing]
    return DataFile(periods, sorted(gaps, key=lambda gap: gap.first_step))


def _readable(parts: list[Path], accept_gap: bool) -> Iterable[tuple[int, int, int]]:
    """First step, last step and rows a step of each part, in which every step has as many: one node's."""
    for part in parts:
        try:
            first, last, rows = datapoint_files.steps_and_rows(part)
        except InputError as error:
            if not accept_gap:
                raise InputError(f"{error}, {_OR_ACCEPT} it") from error
            datapoint_files.discard(part)
        else:
            yield first, last, rows // max(last - first + 1, 1)


def _missing(
    periods: list[DataPeriod], gaps: list[Gap], parts: Iterable[tuple[int, int, int]], last_step: int
) -> list[tuple[int, int]]:
    """First and last of the steps, in no gap, that have fewer rows than their period's batch."""
    sizes = {period.first_step: period.global_batch_size for period in periods}
    in_gap = max(sizes.values(), default=0)
    change: defaultdict[int, int] = defaultdict(int)
    for first, last, rows in [*parts, *((gap.first_step, gap.last_step, in_gap) for gap in gaps)]:
        change[first] += rows
        change[last + 1] -= rows
    missing: list[tuple[int, int]] = []
    rows = size = 0
    for begin, end in pairwise(sorted({*change, *sizes, last_step + 1})):
        rows, size = rows + change[begin], sizes.get(begin, size)
        if rows < size and begin <= last_step:
            if missing and missing[-1][1] == begin - 1:
                begin = missing.pop()[0]
            missing.append((begin, end - 1))
    return missing
