#!/usr/bin/env python
"""Does our trainer compute what it should? Train transformers' Llama beside it on the same batches.

    python scripts/compare_transformers.py --train_data_dir data/train --model_name tiny_3M --steps 200

Both start from the same weights, in fp32. The other side is a plain loop: every document on its own through
LlamaForCausalLM, the mean loss over all targets, clip_grad_norm_, AdamW. Two questions are answered: how far
the two losses drift apart, and, with our weights copied over at some steps, how far loss and gradients of one
step are from each other.
"""

import itertools
import math
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.cli import run_command
from lit_gpt.hf.config import to_hf_config
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from pretrain.checkpoint.snapshot import model_tensors
from pretrain.data.batch import Batch
from pretrain.data.dataloader import StepBatch
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.schedules import Schedule
from pretrain.trainer import Trainer


@dataclass
class CompareOptions:
    """Train with our trainer and with transformers' Llama in step, and print how far they are apart."""

    train_data_dir: list[str]
    """Token store(s)."""
    model_name: str = "tiny_3M"
    """A small shape, of lit_gpt/model/config.py: this runs on a CPU."""
    steps: PositiveInt = 200
    """Optimizer steps."""
    rows: PositiveInt = 4
    """Rows a step, in two micro-batches on our side."""
    learning_rate: PositiveFloat = 1e-3
    """Peak; cosine with 10 steps of warm-up."""
    copy_at: list[NonNegativeInt] = field(default_factory=lambda: [0, 50, 100, 200])
    """Steps after which our weights are copied into a fresh Llama and one step's gradients compared."""


@dataclass
class Differences:
    """Between our side and the other one."""

    loss: list[float] = field(default_factory=list)
    """Of each step, absolute."""
    probed: dict[int, tuple[float, float]] = field(default_factory=dict)
    """With equal weights, by step: of the loss (absolute) and of the gradients (relative, worst tensor)."""


def main(options: CompareOptions) -> None:
    """Run, and print a table."""
    differences = compare(options)
    for first in range(0, len(differences.loss), 50):
        part = differences.loss[first : first + 50]
        print(f"steps {first + 1:4d}-{first + len(part):4d}: largest difference of the loss {max(part):.2e}")
    for step, (loss, gradient) in differences.probed.items():
        print(f"equal weights after step {step:4d}: loss {loss:.2e}, gradients {gradient:.2e} relative")


def compare(options: CompareOptions) -> Differences:
    """Train both sides and return how far apart they were."""
    with tempfile.TemporaryDirectory() as folder:
        train = TrainOptions(
            train_data_dir=options.train_data_dir,
            out_dir=folder,
            model_name=options.model_name,
            accelerator="cpu",
            global_batch_size=options.rows,
            micro_batch_size=-(-options.rows // 2),
            # One step more than is compared: the last probe needs a batch.
            max_steps=options.steps + 1,
            warmup_steps=10,
            learning_rate=options.learning_rate,
            min_lr=options.learning_rate / 10,
            log_step_interval=50,
        )
        train.check()
        trainer = _InStep(train, options)
        trainer.fit()
    trainer.differences.loss.pop()
    return trainer.differences


class _InStep(Trainer):
    """Our trainer, with the other side doing each step before it."""

    def __init__(self, train: TrainOptions, options: CompareOptions) -> None:
        super().__init__(train, Watchdog(StopRequest()))
        self.copy_at = options.copy_at
        self.differences = Differences()
        self.llama = self._llama_with_our_weights()
        parameters = list(self.llama.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(train.beta1, train.beta2))

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Theirs, then ours."""
        if batch.step - 1 in self.copy_at:
            self._probe(batch)
        their_loss = _loss_and_gradients(self.llama, batch)
        torch.nn.utils.clip_grad_norm_(self.llama.parameters(), self.options.grad_clip)
        for group in self.adamw.param_groups:
            group["lr"] = _cosine(batch.step, self.schedule)
        self.adamw.step()
        self.adamw.zero_grad()
        done = super().train_step(batch, waited)
        our_loss = self.reporter.newest_loss()
        self.differences.loss.append(abs(our_loss - their_loss))
        return done

    def _llama_with_our_weights(self) -> torch.nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        llama = LlamaForCausalLM(LlamaConfig(**to_hf_config(self.config)))
        theirs = dict(llama.named_parameters())
        with torch.no_grad():
            for name, tensor in model_tensors(self.model).items():
                for part in hf_parts(name, self.config):
                    theirs[part.hf_name].copy_(tensor[part.rows])
        return llama

    def _probe(self, batch: StepBatch) -> None:
        llama = self._llama_with_our_weights()
        their_loss = _loss_and_gradients(llama, batch)
        our_loss = 0.0
        for micro in batch.micro_batches:
            loss = (
                self.model(micro.input_ids, micro.positions, micro.documents, micro.labels) / batch.n_targets
            )
            loss.backward()
            our_loss += loss.item()
        theirs = dict(llama.named_parameters())
        worst = 0.0
        for name, parameter in self.model.named_parameters():
            for part in hf_parts(name.removeprefix("_forward_module."), self.config):
                ours = None if parameter.grad is None else parameter.grad[part.rows]
                worst = max(worst, _relative(ours, theirs[part.hf_name].grad))
        self.model.zero_grad()
        self.differences.probed[batch.step - 1] = (abs(our_loss - their_loss), worst)


def _loss_and_gradients(llama: torch.nn.Module, batch: StepBatch) -> float:
    """Mean loss over the step's targets; gradients accumulate in `llama`."""
    total = 0.0
    for micro in batch.micro_batches:
        for input_ids, labels in _documents(micro):
            logits = llama(input_ids=input_ids[None]).logits[0]
            loss = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
            loss = loss / batch.n_targets
            loss.backward()
            total += loss.item()
    return total


def _documents(micro: Batch) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of each document that has a target."""
    bounds = micro.documents.cu_seqlens.tolist()
    inputs, labels = micro.input_ids.flatten(), micro.labels.flatten()
    pairs = [(inputs[a:b], labels[a:b]) for a, b in itertools.pairwise(bounds)]
    return [pair for pair in pairs if (pair[1] != -100).any()]


def _relative(ours: Tensor | None, theirs: Tensor | None) -> float:
    assert ours is not None
    assert theirs is not None
    return ((ours - theirs).norm() / theirs.norm()).item()


def _cosine(step: int, schedule: Schedule) -> float:
    """Written anew on purpose: the schedule is compared too."""
    if step <= schedule.warmup_steps:
        return schedule.peak * step / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / (schedule.max_steps - schedule.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (schedule.peak - schedule.final) * cosine


if __name__ == "__main__":
    run_command(CompareOptions, main)
