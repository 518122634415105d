#!/usr/bin/env python
"""Choose a model that this machine can train on your data in the hours you have, and write its configuration.

    python scripts/choose_config.py --train_data_dir data/train --hours 5 --output mine.yaml

Trains each of the named shapes for a minute, smallest first, and takes the largest that still sees enough
tokens for its size.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, parse_options, run_command
from lit_gpt.files import write_atomically
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import matmul_parameters
from lit_gpt.option_types import PositiveFloat
from lit_gpt.rows.store_entry import parse_stores
from lit_gpt.store.token_store import TokenStore
from pretrain.launch.memory import estimate_memory
from pretrain.monitor.epochs import MAX_EPOCHS
from pretrain.options import TrainOptions
from scripts.bench.measurement import Measurement, NotMeasured, measure

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [
    "tiny_3M", "llama_15M", "llama_25M", "llama_50M", "llama_100M", "llama_300M", "llama_500M", "llama_1B",
]  # fmt: skip
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv:2203.15556
MAX_LEARNING_RATE = 2e-3
GPU_SHARE = 0.8  # of the memory, by the estimate


@dataclass
class ChooseOptions:
    """Choose a model that this machine can train on your data in the hours you have."""

    train_data_dir: list[str]
    """Token store(s), as for training."""
    output: Path
    """YAML file to write, for `pretrain/tinyllama_fabric.py --config`."""
    hours: PositiveFloat = 5.0
    """Training time in hours."""


@dataclass(frozen=True)
class Choice:
    """A shape, its measured speed, and the tokens that it can be trained on."""

    options: TrainOptions
    config: ModelConfig
    measurement: Measurement
    tokens: float
    """As many as the time and the data allow."""

    @property
    def per_parameter(self) -> float:
        return self.tokens / self.config.n_parameters

    def final_options(self) -> TrainOptions:
        """Set batch size and learning rate by its compute (DeepSeek-AI 2024, arXiv:2401.02954)."""
        flops = 6 * matmul_parameters(self.config) * self.tokens
        rows = 0.2920 * flops**0.3271 / self.config.block_size
        batch = 2 ** max(round(math.log2(rows)), 3)
        steps = max(int(self.tokens / (batch * self.config.block_size)), 1)
        rate = float(f"{min(0.3118 * flops**-0.1250, MAX_LEARNING_RATE):.1e}")
        interval = max(steps // 20, 1)
        return dataclasses.replace(
            self.options,
            global_batch_size=batch,
            max_steps=steps,
            learning_rate=rate,
            min_lr=rate / 10,
            save_step_interval=interval,
            eval_step_interval=interval,
        )


def main(options: ChooseOptions) -> None:
    if not options.output.parent.is_dir():
        raise InputError(f"--output {options.output}: its folder does not exist; create it")
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    base = ROOT / "pretrain/configs" / ("one_cpu.yaml" if memory is None else "one_gpu_24gb.yaml")
    flags = ["--config", str(base), "--out_dir", "none", "--train_data_dir", *options.train_data_dir]
    entries = parse_stores(options.train_data_dir)
    stores = [(entry, TokenStore.open(entry.path)) for entry in entries]
    targets = sum(entry.fraction * (store.n_tokens - store.n_documents) for entry, store in stores)
    vocab_size = stores[0][1].vocab_size
    chosen = _choose(
        parse_options(TrainOptions, flags), MAX_EPOCHS * targets, vocab_size, options.hours, memory
    )
    trained = chosen.final_options()
    default = TrainOptions()
    lines = [
        f"# {chosen.config.n_parameters:,} parameters, {chosen.tokens:,.0f} tokens, "
        f"{chosen.per_parameter:.1f} a parameter.",
        f"# {chosen.measurement.describe()}:",
        f"# {chosen.tokens / chosen.measurement.tokens_per_second / 3600:.1f} hours.",
    ]
    for field in dataclasses.fields(TrainOptions):
        value = getattr(trained, field.name)
        if field.name not in ("out_dir", "train_data_dir") and value != getattr(default, field.name):
            lines.append(f"{field.name}: {value}")
    if chosen.per_parameter < TOKENS_PER_PARAMETER:
        print(
            f"warning: {chosen.per_parameter:.1f} tokens a parameter are few; for {TOKENS_PER_PARAMETER:g} "
            "give more hours or more data"
        )
    write_atomically(options.output, "\n".join(lines) + "\n")
    print(
        f"{chosen.config.name}, written to {options.output}; to train:\n"
        f"python pretrain/tinyllama_fabric.py --config {options.output} "
        f"--train_data_dir {' '.join(options.train_data_dir)} --out_dir DIR --resume auto"
    )


def _choose(base: TrainOptions, data: float, vocab_size: int, hours: float, memory: int | None) -> Choice:
    """Return the largest shape that sees enough of the `data` tokens, or the smallest if none does."""
    chosen = None
    for name in SHAPES:
        config = ModelConfig.load(name).with_vocab_of(vocab_size)
        if chosen is not None and data / config.n_parameters < TOKENS_PER_PARAMETER:
            print(f"{name}: too little data for {config.n_parameters:,} parameters", flush=True)
            break
        options = _fit(dataclasses.replace(base, model_name=name), config, memory)
        try:
            measured = measure(options)
        except NotMeasured as error:
            if chosen is None:
                raise
            print(f"{name}: {error}", flush=True)
            break
        choice = Choice(options, config, measured, min(measured.tokens_per_second * hours * 3600, data))
        print(
            f"{name}: {config.n_parameters:,} parameters, {measured.describe()}; {choice.tokens:,.0f} tokens "
            f"in {hours:g} h and {MAX_EPOCHS} epochs, {choice.per_parameter:.1f} a parameter",
            flush=True,
        )
        if chosen is not None and choice.per_parameter < TOKENS_PER_PARAMETER:
            break
        chosen = choice
    assert chosen is not None
    return chosen


def _fit(options: TrainOptions, config: ModelConfig, memory: int | None) -> TrainOptions:
    """Set the largest micro-batch that fits by the estimate; recompute activations if none does."""
    if memory is None:
        return options
    for recompute in ("none", "full"):
        for rows in (32, 16, 8, 4, 2, 1):
            fitted = dataclasses.replace(options, micro_batch_size=rows, activation_checkpointing=recompute)
            if estimate_memory(fitted, config, device_bytes=memory).total < GPU_SHARE * memory:
                return fitted
    return fitted


if __name__ == "__main__":
    run_command(ChooseOptions, main)
