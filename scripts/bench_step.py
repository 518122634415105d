#!/usr/bin/env python
"""How fast is a training step, and against others? Every variant in a process of its own, in turns.

python scripts/bench_step.py      # on a GPU: 120M, 1.1B and 7B against litgpt and transformers
python scripts/bench_step.py --shapes tiny_20M:4 --variants ours bare transformers --rounds 5   # on a CPU
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.cli import InputError, run_command
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import device_peak_flops, flops_per_token
from lit_gpt.option_types import NonNegativeInt, PositiveInt
from lit_gpt.store.token_store import TokenStore
from scripts.bench.sample_store import fixed_length_store, sample_store

ROOT = Path(__file__).resolve().parents[1]
GPU_SHAPES = ["LLaMmlein_120M:64", "LLaMmlein_1B:16", "LLaMmlein_7B:4:bf16-true"]
CPU_SHAPES = ["tiny_20M:4"]


@dataclass
class BenchOptions:
    """Compare training steps, and print a table of tokens per second, ratios and MFU."""

    shapes: list[str] = field(default_factory=list)
    """MODEL:ROWS or MODEL:ROWS:PRECISION. On CUDA without it: 120M, 1B and 7B; on CPU a tiny shape."""
    variants: list[str] = field(default_factory=list)
    """bare, transformers, litgpt or one of scripts/bench/step_switches.py; the last is the base."""
    train_data_dir: str | None = None
    """Token store to train on."""
    document_lengths: list[PositiveInt] = field(default_factory=list)
    """Train also on stores of random documents with so many targets each, whose attention is known. Without a
    store and without lengths: on the sample corpus."""
    steps: PositiveInt = 10
    """Timed steps of a process."""
    warmup: NonNegativeInt = 4
    """Steps before them."""
    rounds: PositiveInt = 1
    """Times that each variant runs, in turns; the median of all steps counts."""
    profile: bool = False
    """Print kernel time by group for ours, and no table."""
    output: str | None = None
    """Write all figures to this JSON file too."""


def main(options: BenchOptions) -> None:
    """Run all, shape by shape, and print."""
    cuda = torch.cuda.is_available()
    shapes = [_parse_shape(text, cuda) for text in options.shapes or (GPU_SHAPES if cuda else CPU_SHAPES)]
    default = (
        ["ours", "ours-fa2", "ours-float8", "ours-deterministic", "transformers", "litgpt"]
        if cuda
        else ["ours", "bare", "transformers"]
    )
    variants = options.variants or default
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for data, store in _stores(options, Path(folder)).items():
            for model_name, rows, precision in shapes:
                print(f"\n{model_name}: {rows} rows, {precision}, {data}", flush=True)
                if options.profile:
                    _run("ours", model_name, rows, precision, store, options)
                    continue
                for line in _compare(model_name, rows, precision, variants, store, options):
                    results.append({"data": data, **line})
    if options.output is not None:
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


def _stores(options: BenchOptions, folder: Path) -> dict[str, str]:
    """What is trained on, in words, and where it lies."""
    stores = {f"store {options.train_data_dir}": options.train_data_dir} if options.train_data_dir else {}
    for length in options.document_lengths:
        stores[f"random documents of {length}"] = fixed_length_store(folder, length)
    return stores or {"sample corpus": sample_store(folder)}


def _compare(
    model_name: str, rows: int, precision: str, variants: list[str], store: str, options: BenchOptions
) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    memory: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    for _ in range(options.rounds):
        for variant in variants:
            if variant in failures:
                continue
            result = _run(variant, model_name, rows, precision, store, options)
            if isinstance(result, str):
                failures[variant] = result
                print(f"  {variant}: not measured: {result}", flush=True)
                continue
            seconds[variant] += result["seconds"]
            memory[variant] = result["peak_memory_gb"]
            print(f"  {variant}: {1000 * statistics.median(result['seconds']):.1f} ms a step", flush=True)
    config = ModelConfig.load(model_name).with_vocab_of(TokenStore.open(store).vocab_size)
    measured = [variant for variant in variants if seconds[variant]]
    tokens = {variant: rows * config.block_size / statistics.median(seconds[variant]) for variant in measured}
    peak = device_peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    base = measured[-1] if measured else None
    print(
        f"{'variant':21s} {'tok/s':>10s} {'ratio':>7s} {'ms/step':>9s} {'spread':>7s} {'MFU':>6s} {'GB':>6s}"
        f"  (ratio against {base}, rows of {config.block_size})"
    )
    lines = []
    for variant in measured:
        middle = statistics.median(seconds[variant])
        spread = (max(seconds[variant]) - min(seconds[variant])) / middle
        mfu = None if peak is None else tokens[variant] * flops_per_token(config, config.block_size) / peak
        ratio = tokens[variant] / tokens[base or variant]
        print(
            f"{variant:21s} {tokens[variant]:10,.0f} {ratio:7.3f} {middle * 1000:9.1f} {spread:7.1%} "
            f"{'' if mfu is None else f'{mfu:.1%}':>6s} {memory[variant] or 0:6.1f}",
            flush=True,
        )
        lines.append(
            {"model": model_name, "rows": rows, "precision": precision, "variant": variant, "ratio": ratio}
            | {"tokens_per_second": tokens[variant], "mfu": mfu, "seconds": seconds[variant]}
        )
    return lines


def _run(
    variant: str, model_name: str, rows: int, precision: str, store: str, options: BenchOptions
) -> dict[str, Any] | str:
    """The figures of one process, or the last line of what went wrong."""
    command = [sys.executable, str(ROOT / "scripts/bench/step_variants.py"), "--variant", variant]
    command += ["--model_name", model_name, "--rows", str(rows), "--precision", precision]
    command += ["--train_data_dir", store, "--steps", str(options.steps), "--warmup", str(options.warmup)]
    if options.profile:
        command.append("--profile")
    result = subprocess.run(command, capture_output=True, text=True)
    if options.profile:
        print(result.stderr, file=sys.stderr)
    if result.returncode != 0:
        return (result.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(result.stdout.strip().splitlines()[-1])


def _parse_shape(text: str, cuda: bool) -> tuple[str, int, Literal["32-true", "bf16-mixed", "bf16-true"]]:
    name, *rest = text.split(":")
    if not rest or not rest[0].isdigit() or len(rest) > 2:
        raise InputError(f"--shapes {text}: write MODEL:ROWS or MODEL:ROWS:PRECISION")
    ModelConfig.load(name)
    precision: Any = rest[1] if len(rest) == 2 else "bf16-mixed" if cuda else "32-true"
    return name, int(rest[0]), precision


if __name__ == "__main__":
    run_command(BenchOptions, main)
