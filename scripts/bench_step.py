#!/usr/bin/env python
"""Compare the speed of a training step with its variants and with other code, in turns.

    python scripts/bench_step.py      # on a GPU: 120M, 1.1B and 7B against litgpt and transformers
    python scripts/bench_step.py --shapes tiny_20M:4 --variants ours bare transformers --rounds 5   # on a CPU

Every variant runs in a process of its own.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.cli import InputError, run_command
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import device_peak_flops, flops_per_token
from lit_gpt.option_types import NonNegativeInt, PositiveInt
from pretrain.data.inputs import open_inputs
from pretrain.options import TrainOptions
from scripts.bench.measurement import Measurement, in_turns, run_steps
from scripts.bench.sample_store import fixed_length_store, sample_store
from scripts.bench.step_variants import OTHERS, SWITCHES

GPU_SHAPES = ["LLaMmlein_120M:64", "LLaMmlein_1B:16", "LLaMmlein_7B:4:bf16-true"]
GPU_VARIANTS = ["ours", "ours-fa2", "ours-float8", "ours-deterministic", "transformers", "litgpt"]
CPU_SHAPES, CPU_VARIANTS = ["tiny_20M:4"], ["ours", "bare", "transformers"]


@dataclass
class BenchOptions:
    """Compare training steps, and print a table of tokens per second, ratios and MFU."""

    shapes: list[str] = field(default_factory=list)
    """MODEL:ROWS or MODEL:ROWS:PRECISION. Without it on CUDA 120M, 1B and 7B; on a CPU a tiny shape."""
    variants: list[str] = field(default_factory=list)
    """Variants of scripts/bench/step_variants.py; ratios are against the last one."""
    train_data_dir: str | None = None
    """Token store to train on."""
    document_lengths: list[PositiveInt] = field(default_factory=list)
    """Train also on stores of random documents with this many targets each. Without a store and without
    lengths: on the sample corpus."""
    steps: PositiveInt = 10
    """Timed steps of a process."""
    warmup: NonNegativeInt = 4
    """Steps before them."""
    rounds: PositiveInt = 1
    """Number of times each variant runs, in turns; the median of all its steps counts."""
    profile: bool = False
    """Print the kernel time of `ours` by group instead of the table."""
    output: str | None = None
    """JSON file to which all figures are written too."""


def main(options: BenchOptions) -> None:
    cuda = torch.cuda.is_available()
    shapes = [_parse_shape(text, options) for text in options.shapes or (GPU_SHAPES if cuda else CPU_SHAPES)]
    variants = options.variants or (GPU_VARIANTS if cuda else CPU_VARIANTS)
    known = [*SWITCHES, *OTHERS]
    if unknown := [variant for variant in variants if variant not in known]:
        raise InputError(f"--variants {' '.join(unknown)}: unknown; known: {', '.join(known)}")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for data, store in _stores(options, Path(folder)).items():
            for shape in shapes:
                train = dataclasses.replace(shape, train_data_dir=[store])
                print(
                    f"\n{train.model_name}: {train.global_batch_size} rows, {train.precision}, {data}",
                    flush=True,
                )
                if options.profile:
                    _run("ours", train, options)
                else:
                    measured = _measure(train, variants, options)
                    results += [{"data": data, **line} for line in _print_table(train, measured)]
    if options.output is not None:
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


def _stores(options: BenchOptions, folder: Path) -> dict[str, str]:
    """Token stores to train on, by their description."""
    stores = {f"store {options.train_data_dir}": options.train_data_dir} if options.train_data_dir else {}
    for length in options.document_lengths:
        stores[f"random documents of {length}"] = fixed_length_store(folder, length)
    return stores or {"sample corpus": sample_store(folder)}


def _measure(train: TrainOptions, variants: list[str], options: BenchOptions) -> dict[str, list[Measurement]]:
    """The measurements of each variant that runs here; the others are named."""
    failed = set()

    def attempt(variant: str) -> Measurement | None:
        if variant in failed:
            return None
        try:
            measured = _run(variant, train, options)
        except InputError as error:
            failed.add(variant)
            print(f"  {variant}: not measured: {error}", flush=True)
            return None
        print(f"  {variant}: {1000 * statistics.median(measured.seconds):.1f} ms a step", flush=True)
        return measured

    turns: dict[str, Callable[[], Measurement | None]] = {v: partial(attempt, v) for v in variants}
    rounds = in_turns(turns, options.rounds).items()
    return {variant: [one for one in found if one] for variant, found in rounds if variant not in failed}


def _run(variant: str, train: TrainOptions, options: BenchOptions) -> Measurement:
    flags = ["--variant", variant, "--untimed_steps", str(options.warmup), f"--profile={options.profile}"]
    return run_steps(train, *flags, show_errors=options.profile)


def _print_table(train: TrainOptions, measured: dict[str, list[Measurement]]) -> list[dict[str, Any]]:
    """Print a line for each variant, and return the figures of all."""
    rows, config = train.global_batch_size, open_inputs(train).config
    shape = {"model": train.model_name, "rows": rows, "precision": train.precision}
    peak = device_peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    seconds = {name: [second for run in runs for second in run.seconds] for name, runs in measured.items()}
    medians = {name: statistics.median(every) for name, every in seconds.items()}
    base = next(reversed(medians), None)
    print(
        f"{'variant':21s} {'tok/s':>10s} {'ratio':>7s} {'ms/step':>9s} {'spread':>7s} {'MFU':>6s} {'GB':>6s}"
        f"  (ratio against {base}, rows of {config.block_size}, GB at most)"
    )
    lines = []
    for name, middle in medians.items():
        tokens, ratio = rows * config.block_size / middle, medians[str(base)] / middle
        mfu = None if peak is None else tokens * flops_per_token(config, config.block_size) / peak
        spread = (max(seconds[name]) - min(seconds[name])) / middle
        print(
            f"{name:21s} {tokens:10,.0f} {ratio:7.3f} {middle * 1000:9.1f} {spread:7.1%} "
            f"{'' if mfu is None else f'{mfu:.1%}':>6s} {measured[name][-1].peak_bytes / 1e9:6.1f}",
            flush=True,
        )
        figures = {"ratio": ratio, "tokens_per_second": tokens, "mfu": mfu, "seconds": seconds[name]}
        lines.append(shape | {"variant": name} | figures)
    return lines


def _parse_shape(text: str, options: BenchOptions) -> TrainOptions:
    """The trainer's options for a shape, without a store."""
    name, *rest = text.split(":")
    if not rest or not rest[0].isdigit() or len(rest) > 2:
        raise InputError(f"--shapes {text}: write MODEL:ROWS or MODEL:ROWS:PRECISION")
    ModelConfig.load(name)
    precision: Any = rest[1] if len(rest) == 2 else "bf16-mixed" if torch.cuda.is_available() else "32-true"
    return TrainOptions(
        model_name=name,
        global_batch_size=int(rest[0]),
        micro_batch_size=int(rest[0]),
        max_steps=options.warmup + options.steps,
        warmup_steps=0,
        precision=precision,
        save_step_interval=0,
        log_step_interval=1_000_000,
    )


if __name__ == "__main__":
    run_command(BenchOptions, main)
