"""The trainer against transformers' Llama in a plain loop, from the same weights and on the same batches.

The other side runs every document on its own through LlamaForCausalLM, takes the mean loss over all targets,
and steps with clip_grad_norm_ and AdamW. Two figures: how far the losses of the two drift apart, and how far
loss and gradients of one step are apart where the other side has our weights.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.hf.mapping import hf_parts
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.trainer import Trainer
from tests.pretrain.llama import copy_as_llama

STEPS = 100
PROBED = (0, 50, 100)  # steps done before gradients are compared with equal weights


@pytest.mark.slow
def test_training_follows_transformers(tmp_path, train_store_dir):
    options = TrainOptions(
        train_data_dir=[str(train_store_dir)],
        out_dir=str(tmp_path),
        model_name="tiny_100K",
        accelerator="cpu",
        global_batch_size=4,
        micro_batch_size=2,
        max_steps=STEPS + 1,  # the last probe needs a batch
        warmup_steps=10,
        learning_rate=3e-3,
        min_lr=3e-4,
        log_step_interval=50,
    )
    options.check()
    trainer = ComparedTrainer(options)
    trainer.fit()
    print(f"losses differ by {max(trainer.apart):.1e} at most in {len(trainer.apart)} steps")
    print("with equal weights, loss and gradients:", trainer.probed)
    assert len(trainer.apart) == STEPS + 1
    assert max(trainer.apart) < 1e-4
    assert list(trainer.probed) == list(PROBED)
    for loss, gradient in trainer.probed.values():
        assert loss < 1e-5
        assert gradient < 1e-5


class ComparedTrainer(Trainer):
    """The trainer, with the other side doing each step before it."""

    def __init__(self, options):
        super().__init__(options, Watchdog(StopRequest()))
        self.apart = []  # of the losses of each step
        self.probed = {}  # step -> with equal weights: of the losses; of the worst gradient, relative
        self.llama = copy_as_llama(self.model, self.config)
        matrices = [parameter for parameter in self.llama.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in self.llama.parameters() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(options.beta1, options.beta2))

    def train_step(self, batch, waited):
        if batch.step - 1 in PROBED:
            self.probe(batch)
        their_loss = accumulate_gradients(self.llama, batch)
        torch.nn.utils.clip_grad_norm_(self.llama.parameters(), self.options.grad_clip)
        for group in self.adamw.param_groups:
            group["lr"] = cosine(batch.step, self.options)
        self.adamw.step()
        self.adamw.zero_grad()
        complete = super().train_step(batch, waited)
        self.apart.append(abs(self.reporter._unread[-1][2][0].item() - their_loss))
        return complete

    def probe(self, batch):
        llama = copy_as_llama(self.model, self.config)
        apart = -accumulate_gradients(llama, batch)
        for micro in batch.micro_batches:
            loss = (
                self.model(micro.input_ids, micro.positions, micro.documents, micro.labels) / batch.n_targets
            )
            loss.backward()
            apart += loss.item()
        theirs = dict(llama.named_parameters())
        relative = []
        for name, parameter in self.model.named_parameters():
            for part in hf_parts(name.removeprefix("_forward_module."), self.config):
                their_gradient = theirs[part.hf_name].grad
                difference = parameter.grad[part.rows] - their_gradient
                relative.append((difference.norm() / their_gradient.norm()).item())
        self.model.zero_grad()
        self.probed[batch.step - 1] = (abs(apart), max(relative))


def accumulate_gradients(llama, batch):
    """Backward of the mean loss over the step's targets, which is returned."""
    total = 0.0
    for micro in batch.micro_batches:
        inputs, labels = micro.input_ids.flatten(), micro.labels.flatten()
        for begin, end in itertools.pairwise(micro.documents.cu_seqlens.tolist()):
            if (labels[begin:end] == -100).all():
                continue
            logits = llama(input_ids=inputs[None, begin:end]).logits[0]
            loss = F.cross_entropy(logits.float(), labels[begin:end], ignore_index=-100, reduction="sum")
            loss = loss / batch.n_targets
            loss.backward()
            total += loss.item()
    return total


def cosine(step, options):
    """Written anew on purpose: the schedule is compared too."""
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    progress = (step - options.warmup_steps) / (options.max_steps - options.warmup_steps)
    return options.min_lr + (options.learning_rate - options.min_lr) * (1 + math.cos(math.pi * progress)) / 2
