"""What the tests of loader, log and cache share: small data, and a run that only feeds and logs."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lit_gpt.rows.sample_order import OrderStart
from pretrain.data.dataloader import DataLoader
from pretrain.data.numbering import Numbering
from pretrain.data.row_reader import StepRows
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
    with_losses: bool = False,
) -> None:
    """Feed and log the steps after `after` to `last`; what is recorded after the last commit is lost."""
    log = DatapointLog(out_dir, data.describe(), numbering=Numbering(GLOBAL_BATCH), with_losses=with_losses)
    log.discard_after(after)
    loader = feed(data, first_step=after + 1)
    for step in range(after + 1, last + 1):
        rows = next(loader).rows
        log.record(rows, 1.7e9 + step, losses_as_fed(rows, data.options.block_size) if with_losses else ())
        if step in commits:
            log.commit(step, {number for number in skipped if number <= step})


def made_up_loss(step: np.ndarray, document: np.ndarray, start: np.ndarray) -> np.ndarray:
    """A loss, fp16 (n,), from which it shows what it was logged for."""
    return (8 / (1 + step / 16) + document % 11 + start / 1024).astype(np.float16)


def losses_as_fed(rows: StepRows, block_size: int) -> list[torch.Tensor]:
    """`made_up_loss` of a step's segments, with those that fill rows up, in two micro-batches."""
    losses = []
    for number in range(len(rows.sample)):
        row = rows.table.rows.part(number, number + 1)
        losses += made_up_loss(np.int64(rows.step), row.document, row.start).tolist()
        losses += [float("nan")] * (int(row.length.sum()) < block_size)
    half = len(losses) // 2
    return [torch.tensor(part, dtype=torch.float16) for part in (losses[:half], losses[half:])]


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
