"""Figures of steps, which stay on the device until a log step reads them all at once, and their speed."""

import time
import warnings
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import device_peak_flops, flops_inside_documents, flops_per_token
from pretrain.data.row_reader import StepRows
from pretrain.data.training_data import TrainingData
from pretrain.monitor.epochs import Epochs
from pretrain.monitor.metrics import MetricsWriter, ProgressLine, StepMetrics
from pretrain.schedules import Schedule

PACE_SECONDS = 1800.0
MAX_NAMED = 20  # documents of a skipped step; the datapoint log has all


@dataclass(frozen=True)
class Speed:
    """Means over an interval of steps. Rates count all devices; `mfu` is None where the peak is unknown."""

    tokens_per_second: float
    step_seconds: float
    data_wait_seconds: float
    mfu: float | None
    mfu_documents: float | None
    peak_memory_gb: float | None


class SpeedMonitor:
    """Counts between two calls of `report`, each of which stands right after a synchronisation.

    mfu takes 6 * N_matmul + 12 * L * d * T FLOP a token, mfu_documents counts attention inside documents
    only, as it is computed (lit_gpt/model/flops.py).
    """

    def __init__(self, config: ModelConfig, device: torch.device, world_size: int) -> None:
        self._config = config
        self._device = device
        self._world_size = world_size
        self._peak = None
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self._peak = device_peak_flops(name)
            if self._peak is None:
                warnings.warn(f"peak FLOP/s of '{name}' unknown: no MFU will be shown", stacklevel=2)
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._steps = 0
        self._tokens = 0
        self._attention_pairs = 0
        self._data_wait = 0.0

    def step(self, tokens: int, attention_pairs: int, data_wait: float) -> None:
        """Count a step: tokens read by all ranks, squared document lengths of this rank, seconds waited."""
        self._steps += 1
        self._tokens += tokens
        self._attention_pairs += attention_pairs
        self._data_wait += data_wait

    def pause(self) -> "_Pause":
        """A context whose time does not count: validation, saving. Waits for the device at both ends."""
        return _Pause(self)

    def synchronize(self) -> None:
        """Wait for what is queued on the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def report(self) -> Speed | None:
        """Means since the last report, which it begins anew; None when no step has passed."""
        if self._steps == 0:
            return None
        seconds = max(time.monotonic() - self._since, 1e-9)
        config = self._config
        tokens_per_second = self._tokens / seconds
        mfu = mfu_documents = None
        if self._peak is not None:
            peak = self._peak * self._world_size
            mfu = tokens_per_second * flops_per_token(config, config.block_size) / peak
            # This rank's documents stand for those of all ranks.
            pairs = self._attention_pairs * self._world_size
            mfu_documents = flops_inside_documents(config, self._tokens, pairs) / seconds / peak
        memory = None
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device) / 1e9
        speed = Speed(
            tokens_per_second,
            seconds / self._steps,
            self._data_wait / self._steps,
            mfu,
            mfu_documents,
            memory,
        )
        self._reset()
        return speed


class _Pause:
    def __init__(self, monitor: SpeedMonitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        self._monitor.synchronize()  # or the steps still queued would count as paused
        self._began = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self._monitor.synchronize()
        self._monitor._since += time.monotonic() - self._began


class Pace:
    """Seconds that a step took over the last half hour by the clock, validation and saving included."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def seconds_per_step(self, step: int, now: float, latest: float) -> float:
        """Mark that `step` ended at `now`; the first time the answer is `latest`, a mean without a past."""
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > PACE_SECONDS:
            self._marks.popleft()
        began, first = self._marks[0]
        return (now - began) / (step - first) if step > first else latest


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
        seconds = None
        if (speed := self._speed.report()) is not None:
            for name, value in vars(speed).items():
                setattr(last, name, value)
            seconds = self._pace.seconds_per_step(last.step, time.monotonic(), speed.step_seconds)
        if self._metrics is not None:
            self._metrics.write(lines)
        self._progress.update(last, self._epochs.now(last.step), seconds)
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
