#!/usr/bin/env python
"""One variant of scripts/bench_step.py in a process of its own; prints its figures as one JSON line."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import itertools

import torch
from torch import Tensor, nn

from lit_gpt.cli import InputError, run_command
from lit_gpt.hf.config import to_hf_config
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from lit_gpt.option_types import NonNegativeInt, PositiveInt
from lit_gpt.store.token_store import TokenStore
from pretrain.data.dataloader import DataLoader, StepBatch
from pretrain.data.training_data import DataOptions, TrainingData
from pretrain.options import TrainOptions
from scripts.bench.step_switches import SWITCHES, Switch
from scripts.bench.timed_trainer import TimedTrainer

LITGPT_LOSS_CHUNK = 128  # tokens, as `litgpt pretrain` has it


@dataclass
class VariantOptions:
    """Time the training step of one variant."""

    variant: str
    """ours, ours-* and without-*: this project's trainer, data engine and log included
    (step_switches.py); bare: its model in a plain loop; transformers: LlamaForCausalLM; litgpt: the
    recipe of `litgpt pretrain`."""
    model_name: str
    """Shape, of lit_gpt/model/config.py."""
    rows: PositiveInt
    """Rows of a step, in one micro-batch."""
    train_data_dir: str
    """Token store for ours and bare; the others are fed random tokens."""
    steps: PositiveInt = 10
    """Timed steps."""
    warmup: NonNegativeInt = 4
    """Steps before, which compile."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """As in the trainer; litgpt's recipe is always bf16-true on CUDA."""
    profile: bool = False
    """Print the time of kernels by group (ours only), of the timed steps."""


def main(options: VariantOptions) -> None:
    """Dispatch, and print seconds per step and peak memory."""
    torch.manual_seed(0)
    others = {"bare": _bare, "transformers": _transformers, "litgpt": _litgpt}
    if options.variant in SWITCHES:
        seconds = _ours(options, SWITCHES[options.variant])
    elif options.variant in others:
        seconds = _time(others[options.variant](options), options)
    else:
        known = ", ".join([*SWITCHES, *others])
        raise InputError(f"--variant {options.variant}: unknown; known: {known}")
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    print(json.dumps({"seconds": seconds, "peak_memory_gb": peak}), flush=True)


class _ProfiledTrainer(TimedTrainer):
    """Profiles the steps after the warm-up."""

    def profile(self, options: VariantOptions) -> None:
        """Train, and print milliseconds a step by group of kernels, on the device if there is one."""
        activity = torch.profiler.ProfilerActivity
        last = min(options.warmup, 1)  # of the warm-up, in which the profiler starts
        self.profiler = torch.profiler.profile(
            activities=[activity.CUDA if torch.cuda.is_available() else activity.CPU],
            schedule=torch.profiler.schedule(
                wait=options.warmup - last, warmup=last, active=options.steps, repeat=1
            ),
        )
        with self.profiler:
            self.fit()
        _print_groups(self.profiler, options.steps)

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Tell the profiler where a step ends."""
        complete = super().train_step(batch, waited)
        self.profiler.step()
        return complete


def _ours(options: VariantOptions, switch: Switch) -> list[float]:
    switch.apply()
    with tempfile.TemporaryDirectory() as folder:
        train = TrainOptions(
            train_data_dir=[options.train_data_dir],
            out_dir=folder,
            model_name=options.model_name,
            global_batch_size=options.rows,
            micro_batch_size=options.rows,
            max_steps=options.warmup + options.steps,
            warmup_steps=0,
            precision=options.precision,
            save_step_interval=0,
            log_step_interval=1_000_000,
            **switch.options,
        )
        train.check()
        if options.profile:
            _ProfiledTrainer(train).profile(options)
            return []
        trainer = TimedTrainer(train)
        trainer.fit()
    ends = trainer.ends[options.warmup :]
    return [after - before for before, after in itertools.pairwise(ends)]


def _time(step: Callable[[], None], options: VariantOptions) -> list[float]:
    for _ in range(options.warmup):
        step()
    seconds = []
    for _ in range(options.steps):
        _synchronize()
        began = time.perf_counter()
        step()
        _synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _bare(options: VariantOptions) -> Callable[[], None]:
    """The same model and batches in the shortest loop that trains."""
    device = _device()
    batches = _batches(options, device)
    config = _shape(options)
    with device:
        model = GPT(config)
    model.init_weights(0)
    if device.type == "cuda":
        for block in model.transformer.h:
            block.compile()

    def loss() -> Tensor:
        batch = next(batches)
        micro = batch.micro_batches[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            return model(micro.input_ids, micro.positions, micro.documents, micro.labels) / batch.n_targets

    return _plain_step(model, loss)


def _plain_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step in the shortest loop that trains; `loss` is that of the next batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batches(options: VariantOptions, device: torch.device) -> Iterator[StepBatch]:
    block_size = ModelConfig.load(options.model_name).block_size
    data = TrainingData.open(DataOptions([options.train_data_dir], block_size))
    return DataLoader(data, global_batch_size=options.rows, micro_batch_size=options.rows, device=device)


def _transformers(options: VariantOptions) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = _shape(options)
    device = _device()
    with device:
        model = LlamaForCausalLM(LlamaConfig(**to_hf_config(shape), use_cache=False))
    if options.precision == "bf16-true":
        model = model.to(torch.bfloat16)
    if device.type == "cuda":
        model.compile()

    def loss() -> Tensor:
        tokens = torch.randint(shape.vocab_rows, (options.rows, shape.block_size), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            return model(input_ids=tokens, labels=tokens).loss

    return _plain_step(model, loss)


def _litgpt(options: VariantOptions) -> Callable[[], None]:
    """litgpt's pretraining: bf16-true on CUDA, the whole model compiled, loss in chunks of 128 tokens."""
    try:
        from litgpt.config import Config
        from litgpt.model import GPT as LitGPT
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise InputError("the package litgpt is not installed") from error
    shape = _shape(options)
    device = _device()
    config = Config(
        block_size=shape.block_size,
        padded_vocab_size=shape.vocab_rows,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_query_groups=shape.n_query_groups,
        n_embd=shape.n_embd,
        intermediate_size=shape.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    with device:
        model = LitGPT(config)
    if device.type == "cuda":
        model = model.to(torch.bfloat16)
        model = torch.compile(model)

    def loss() -> Tensor:
        tokens = torch.randint(shape.vocab_rows, (options.rows, shape.block_size + 1), device=device)
        logits = model(tokens[:, :-1].contiguous())
        return chunked_cross_entropy(logits, tokens[:, 1:].contiguous(), chunk_size=LITGPT_LOSS_CHUNK)

    return _plain_step(model, loss)


def _print_groups(profiler: torch.profiler.profile, n_steps: int) -> None:
    totals: dict[str, float] = {}
    for event in profiler.key_averages():
        duration = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        totals[_group(event.key)] = totals.get(_group(event.key), 0.0) + duration / 1000 / n_steps
    whole = sum(totals.values()) or 1.0
    for name, milliseconds in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"{name:24s} {milliseconds:9.2f} ms a step  {milliseconds / whole:6.1%}", file=sys.stderr)


_GROUPS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "varlen")),
    (
        "matrix products",
        ("gemm", "nvjet", "cutlass", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "cublas"),
    ),
    ("optimizer and norm", ("adam", "multi_tensor", "_foreach", "norm_kernel")),
    ("copies", ("memcpy", "memset", "copy_", "aten::to")),
    ("fused elementwise", ("triton",)),
)


def _group(kernel: str) -> str:
    name = kernel.lower()
    return next((group for group, parts in _GROUPS if any(part in name for part in parts)), "other")


def _shape(options: VariantOptions) -> ModelConfig:
    """With the vocabulary that the trainer gives it."""
    return ModelConfig.load(options.model_name).with_vocab_of(
        TokenStore.open(options.train_data_dir).vocab_size
    )


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_command(VariantOptions, main)
