"""What the tests of loader, log and cache share: small data, and a run that only feeds and logs."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from lit_gpt.rows.sample_order import OrderStart
from pretrain.data.dataloader import DataLoader
from pretrain.data.numbering import Numbering
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import part_files, read_row_groups
from pretrain.datapoints.log import DatapointLog
from pretrain.datapoints.replay import Replay, Report
from pretrain.options import DataOptions

BLOCK = 64
GLOBAL_BATCH = 6


def open_data(*stores: Path | str, start: OrderStart | None = None, **options: Any) -> TrainingData:
    """Small rows, small windows."""
    settings = {"block_size": BLOCK, "seed": 5, "shuffle_window": 2} | options
    return TrainingData.open(DataOptions([str(store) for store in stores], **settings), start)


def feed(data: TrainingData, global_batch_size: int = GLOBAL_BATCH, **settings: Any) -> DataLoader:
    """A loader without a thread, unless asked for."""
    settings = {"numbering": Numbering(global_batch_size), "micro_batch_size": 4, "prefetch": 0, **settings}
    return DataLoader(data, **settings)


def log_steps(
    out_dir: Path,
    data: TrainingData,
    after: int,
    last: int,
    commits: Collection[int] = (),
    skipped: Collection[int] = (),
) -> None:
    """Feed and log the steps after `after` to `last`; what is recorded after the last commit is lost."""
    log = DatapointLog(out_dir, data.describe(), numbering=Numbering(GLOBAL_BATCH))
    log.discard_after(after)
    loader = feed(data, first_step=after + 1)
    for step in range(after + 1, last + 1):
        log.record(next(loader).rows, 1.7e9 + step)
        if step in commits:
            log.commit(step, {number for number in skipped if number <= step})


def verify(run_dir: Path) -> Report:
    """The complete report of a run's log."""
    return list(Replay(run_dir).verify())[-1]


def whole(run_dir: Path) -> pa.Table:
    """All rows of a run's log, by sample."""
    tables = [table for part in part_files(run_dir / "datapoints") for table in read_row_groups(part)]
    return pa.concat_tables(tables).sort_by("sample")


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
