"""Tokens per second, model FLOPs utilisation, time lost to data, memory and the time that is left."""

import time
import warnings
from collections import deque
from dataclasses import dataclass

import torch

from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import device_peak_flops, flops_inside_documents, flops_per_token

PACE_SECONDS = 1800.0


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
        self._targets = 0
        self._attention_pairs = 0
        self._data_wait = 0.0

    def step(self, targets: int, attention_pairs: int, data_wait: float) -> None:
        """Count a step: targets of all ranks, squared document lengths of this rank, seconds waited."""
        self._steps += 1
        self._targets += targets
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
        tokens_per_second = self._targets / seconds
        mfu = mfu_documents = None
        if self._peak is not None:
            peak = self._peak * self._world_size
            mfu = tokens_per_second * flops_per_token(config, config.block_size) / peak
            # This rank's documents stand for those of all ranks.
            pairs = self._attention_pairs * self._world_size
            mfu_documents = flops_inside_documents(config, self._targets, pairs) / seconds / peak
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
