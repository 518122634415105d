"""Three stages that only feed and log: other batch and block sizes, a store continued, a share of a store."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lit_gpt.rows.sample_order import OrderStart
from pretrain.data.numbering import Numbering
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.log import DatapointLog
from tests.pretrain.feeding import feed, open_data

LAST = 110


class LoggedStage(NamedTuple):
    name: str
    numbering: Numbering
    last_step: int
    data: TrainingData


def open_stages(train: Path, val: Path) -> list[LoggedStage]:
    """`adapt`, `long`, `anneal`: the second has packings of its own, the third goes on in those of the first.

    `adapt` reads about 270 of the validation store's 301 rows; `anneal` reads the others and begins again.
    """
    adapt = open_data(f"{train}:1", f"{val}:3")
    of_long, of_anneal = Numbering(4, 60, 360), Numbering(10, 70, 400)
    start = OrderStart(of_long.first_sample, (0, 1), (0, 0))
    long = open_data(f"{train}@0-40:1", f"{val}:1", block_size=128, start=start)
    in_train, in_val = adapt.order.positions_after(of_long.first_sample)
    start = OrderStart(of_anneal.first_sample, (1, 0), (in_val, in_train))
    anneal = open_data(f"{val}:1", f"{train}:1", start=start)
    return [
        LoggedStage("adapt", Numbering(6), 60, adapt),
        LoggedStage("long", of_long, 70, long),
        LoggedStage("anneal", of_anneal, 110, anneal),
    ]


def log_stages(
    out_dir: Path, stages: list[LoggedStage], after: int, last: int, commits: Collection[int] = ()
) -> None:
    """Feed and log the steps after `after` to `last` as a run does: each stage commits at its end."""
    for stage in stages:
        begin, end = max(after, stage.numbering.steps_before), min(last, stage.last_step)
        if begin >= end:
            continue
        log = DatapointLog(out_dir, stage.data.describe(), stage=stage.name, numbering=stage.numbering)
        log.discard_after(begin)
        loader = feed(stage.data, numbering=stage.numbering, first_step=begin + 1)
        for step in range(begin + 1, end + 1):
            log.record(next(loader).rows, 1.7e9 + step)
            if step in commits or step == stage.last_step:
                log.commit(step)
