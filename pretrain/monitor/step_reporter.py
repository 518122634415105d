"""Steps whose figures are still on the device, until a log step reads them all at once."""

import time

import torch
from torch import Tensor

from pretrain.data.row_reader import StepRows
from pretrain.data.training_data import TrainingData
from pretrain.monitor.epochs import Epochs
from pretrain.monitor.metrics import MetricsWriter, ProgressLine, StepMetrics
from pretrain.monitor.speed import Pace, SpeedMonitor
from pretrain.schedules import Schedule

MAX_NAMED = 20  # documents of a skipped step; the datapoint log has all


class TrainingDiverged(Exception):
    """Too many steps in a row had a gradient that is not finite."""


class StepReporter:
    """Collects losses, norms and skips on the device; `report` waits for it once.

    Args:
        metrics: Rank 0's writer, None elsewhere.
        max_skipped_steps: More steps in a row that are not finite stop the run.
    """

    def __init__(
        self,
        rank: int,
        data: TrainingData,
        epochs: Epochs,
        schedule: Schedule,
        speed: SpeedMonitor,
        metrics: MetricsWriter | None,
        progress: ProgressLine,
        max_skipped_steps: int,
    ) -> None:
        self._rank = rank
        self._data = data
        self._epochs = epochs
        self._schedule = schedule
        self._speed = speed
        self._metrics = metrics
        self._progress = progress
        self._max_skipped_steps = max_skipped_steps
        self._pace = Pace()
        self._unread: list[tuple[StepRows, int, Tensor]] = []
        self._skipped_in_a_row = 0
        self._skipped: set[int] = set()

    def add(self, rows: StepRows, tokens: int, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Remember a step's figures, scalars on the device, and what it was fed, but not the batch itself."""
        self._unread.append((rows, tokens, torch.stack([loss, norm, skipped])))

    def newest_loss(self) -> float:
        """Loss of the step added last. Waits for the device."""
        return self._unread[-1][2][0].item()

    def take_skipped(self) -> set[int]:
        """The steps that were skipped since the last call, as far as they are reported."""
        skipped, self._skipped = self._skipped, set()
        return skipped

    def report(self, val_loss: float | None = None) -> None:
        """Write and show all steps since the last report. Every rank calls it at the same steps.

        Raises:
            TrainingDiverged: too many of the last steps were skipped.
        """
        if not self._unread:
            return
        values = torch.stack([figures for _, _, figures in self._unread]).tolist()
        lines = []
        for (rows, tokens, _), (loss, norm, skipped) in zip(self._unread, values, strict=True):
            rate = self._schedule.learning_rate(rows.step)
            restart = self._metrics.restart if self._metrics else 0
            lines.append(StepMetrics(rows.step, loss, norm, rate, tokens, int(skipped), restart))
            self._count_skip(rows, bool(skipped))
        self._unread.clear()
        last = lines[-1]
        last.val_loss = val_loss
        eta = None
        if (speed := self._speed.report()) is not None:
            for name, value in vars(speed).items():
                setattr(last, name, value)
            seconds = self._pace.seconds_per_step(last.step, time.monotonic(), speed.step_seconds)
            eta = seconds * (self._schedule.max_steps - last.step)
        if self._metrics is not None:
            self._metrics.write(lines)
        self._progress.update(last, self._epochs.now(last.step), eta)
        if self._skipped_in_a_row > self._max_skipped_steps:
            raise TrainingDiverged(
                f"step {last.step}: {self._skipped_in_a_row} steps in a row had a gradient that is not "
                "finite (--max_skipped_steps); lower --learning_rate or look at the documents named above"
            )

    def _count_skip(self, rows: StepRows, skipped: bool) -> None:
        """Remember a skipped step for the datapoint log and name what it was fed."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if skipped:
            self._skipped.add(rows.step)
            ids = self._document_ids(rows)
            more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
            print(
                f"rank {self._rank}: step {rows.step} skipped, its gradient is not finite; fed: "
                f"{', '.join(ids[:MAX_NAMED])}{more}",
                flush=True,
            )

    def _document_ids(self, rows: StepRows) -> list[str]:
        """Ids of the documents that this rank was fed in a step, each once."""
        addresses, _, segments = rows.table
        ids: dict[str, None] = {}
        for row in range(len(rows.sample)):
            store = self._data.stores[addresses.store[row]].store
            documents = segments.part(row, row + 1).document
            infos = store.document_info(int(addresses.shard[row]), documents)
            ids |= dict.fromkeys(info.id for info in infos)
        return list(ids)
