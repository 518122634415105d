#!/usr/bin/env python
"""Measure what a checkpoint costs: the pause of training, writing in the background, verification, loading.

    OMP_NUM_THREADS=1 python scripts/bench_checkpoint.py --work_dir /scratch/me   # a quarter of a 1B model

Saves one rank's share of weights and AdamW moments in fp32 while the main thread keeps computing, and scales
the time lost by bytes to other models and numbers of devices. Times are wall-clock: the machine must have a
core for each of the two threads and nothing else to do.
"""

import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from timeit import repeat, timeit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import xxhash
from torch import nn

from lit_gpt.checkpoint.folder import check_hashes, verify
from lit_gpt.cli import InputError, run_command
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT, clean_name
from lit_gpt.option_types import PositiveFloat, PositiveInt
from pretrain.checkpoint.checkpointer import Checkpointer
from pretrain.checkpoint.collective import Ranks
from pretrain.monitor.save_errors import SaveErrors
from pretrain.optim import build_optimizer
from pretrain.options import TrainOptions
from scripts.bench.measurement import in_turns

BYTES_PER_PARAMETER = 12  # fp32 weight and two moments
VOCAB_SIZE = 32_000  # of a shape that names none
SCALE_TO = [("LLaMmlein_1B", 8), ("LLaMmlein_7B", 8)]


@dataclass
class BenchOptions:
    """Measure saving, verification and loading of one rank's share of a model's state."""

    work_dir: Path
    """Folder on the file system to measure; a temporary folder is made in it and removed."""
    model_name: str = "LLaMmlein_1B"
    """Shape of the model."""
    ranks: PositiveInt = 4
    """Ranks that share it; the part of one is measured."""
    saves: PositiveInt = 5
    """Saves after the first, which allocates the staging memory."""
    interval_minutes: PositiveFloat = 30.0
    """Between the saves of a real run."""


class Share(nn.Module):
    """One rank's rows of every parameter."""

    def __init__(self, model_name: str, ranks: int) -> None:
        super().__init__()
        with torch.device("meta"):
            model = GPT(ModelConfig.load(model_name).with_vocab_of(VOCAB_SIZE))
        for name, parameter in model.named_parameters():
            rows = torch.randn(-(-parameter.shape[0] // ranks), *parameter.shape[1:])
            self.register_parameter(clean_name(name).replace(".", "_"), nn.Parameter(rows))


def main(options: BenchOptions) -> None:
    if not options.work_dir.is_dir():
        raise InputError(f"--work_dir {options.work_dir}: no such folder")
    model = Share(options.model_name, options.ranks)
    optimizer = build_optimizer(model, 1e-3, 0.1, 0.9, 0.95)
    for parameter in model.parameters():
        step = {"step": torch.tensor(1.0)}
        optimizer.state[parameter] = step | {
            name: torch.rand_like(parameter) for name in ("exp_avg", "exp_avg_sq")
        }
    n_bytes = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    print(f"one of {options.ranks} ranks of {options.model_name}: {n_bytes / 1e9:.2f} GB")
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        _measure(options, Path(folder), model, optimizer, n_bytes)


def _measure(
    options: BenchOptions, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, n_bytes: int
) -> None:
    settings = TrainOptions(out_dir=str(folder), keep_last=1)
    saver = Checkpointer(settings, Ranks(None, 0, 1), SaveErrors("stop", rank=0))
    waits, writes, losses = [], [], []
    for number in range(options.saves + 1):
        undisturbed = timeit(_work, number=500) / 500
        begun = time.perf_counter()
        saver.save(number, model, optimizer, {})
        waits.append(time.perf_counter() - begun)
        begun, done = time.perf_counter(), 0
        while saver.saving:
            _work()
            done += 1
        writes.append(time.perf_counter() - begun)
        losses.append(writes[-1] - done * undisturbed)
    saver.close()

    wait, write, loss = (statistics.median(times[1:]) for times in (waits, writes, losses))
    print(f"copied to the CPU while training waits  {_rate(wait, n_bytes)}, the first time {waits[0]:.2f} s")
    print(f"written, hashed and read back behind it {_rate(write, n_bytes)}")
    print(f"  meanwhile the main thread lost {loss:.2f} s, {loss / write:.0%} of its time")
    [checkpoint] = folder.glob("iter-*")
    manifest = verify(checkpoint)
    seconds = statistics.median(repeat(lambda: check_hashes(checkpoint, manifest.files), number=1, repeat=3))
    print(f"verified by one core, from the page cache {_rate(seconds, n_bytes)}")
    _compare_hashes()
    seconds = timeit(lambda: saver.load(checkpoint, model, optimizer), number=1)
    print(f"loaded, with verification               {_rate(seconds, n_bytes)}")
    _scale(options, n_bytes, wait, loss)
    shutil.rmtree(checkpoint)


def _work() -> None:
    """Imitate a training thread on the CPU: many small calls, each of which needs the interpreter."""
    vector = torch.ones(64)
    for _ in range(1000):
        vector = vector * 0.5 + 0.5


def _rate(seconds: float, n_bytes: int) -> str:
    return f"{seconds:6.2f} s, {n_bytes / seconds / 1e9:5.2f} GB/s"


def _compare_hashes() -> None:
    data = torch.randint(0, 255, (256 << 20,), dtype=torch.uint8).numpy().data
    hashes: dict[str, Callable] = {
        "xxh3_128": xxhash.xxh3_128,
        "sha256": hashlib.sha256,
        "blake2b": hashlib.blake2b,
    }
    turns = in_turns(
        {name: partial(timeit, partial(make, data), number=1) for name, make in hashes.items()}, rounds=3
    )
    for name, seconds in turns.items():
        rate = len(data) / statistics.median(seconds) / 1e9
        print(f"  {name:8} in memory, one core: {rate:5.2f} GB/s")


def _scale(options: BenchOptions, n_bytes: int, wait: float, loss: float) -> None:
    print(
        f"\n| model | devices | GB a rank | waits | loses meanwhile | of {options.interval_minutes:g} min |"
    )
    print("|---|---|---|---|---|---|")
    for model_name, devices in SCALE_TO:
        share = BYTES_PER_PARAMETER * ModelConfig.load(model_name).n_parameters / devices
        waits, losses = (seconds * share / n_bytes for seconds in (wait, loss))
        percent = 100 * (waits + losses) / (60 * options.interval_minutes)
        times = f"{waits:.2f} s | {losses:.2f} s | {percent:.2f}%"
        print(f"| {model_name} | {devices} | {share / 1e9:.2f} | {times} |")


if __name__ == "__main__":
    run_command(BenchOptions, main)
