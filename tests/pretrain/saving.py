"""A small model to save and load in tests, and a disk of its own for them to fill."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.checkpoint.checkpointer import Checkpointer
from pretrain.checkpoint.collective import Ranks
from pretrain.checkpoint.snapshot import model_tensors, optimizer_tensors
from pretrain.monitor.save_errors import SaveErrors
from pretrain.optim import build_optimizer
from pretrain.options import TrainOptions


class Small(nn.Module):
    """Sizes that no number of ranks divides, one dimension shorter than four ranks, one shared parameter."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.first = nn.Linear(width, 11, bias=True)
        self.norm = nn.LayerNorm(3, bias=False)
        self.last = nn.Linear(width, 11, bias=False)
        self.last.weight = self.first.weight

    @torch.no_grad()
    def fill(self, seed: int) -> "Small":
        for number, parameter in enumerate(self.parameters()):
            parameter.copy_(_like(parameter, seed + number))
        return self


def _like(tensor: Tensor, seed: int) -> Tensor:
    """Numbers that do not depend on how the tensor is sharded."""
    full = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    if isinstance(tensor, DTensor):
        return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
    return full


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(model, 0.1, 0.1, 0.9, 0.95)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with made-up gradients."""
    for step in steps:
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = _like(parameter, 100 * step + number)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / step
        optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """Copies of all that a checkpoint must bring back."""
    tensors, scalars = optimizer_tensors(model, optimizer)
    whole = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in (model_tensors(model) | tensors).items()
    }
    return whole, scalars


def assert_same(left: tuple[dict[str, Tensor], Any], right: tuple[dict[str, Tensor], Any]) -> None:
    """Bit for bit."""
    assert left[1] == right[1]
    assert left[0].keys() == right[0].keys()
    for name, tensor in left[0].items():
        assert tensor.dtype == right[0][name].dtype, name
        assert torch.equal(tensor, right[0][name]), name


def checkpointer(out_dir: Path, **settings: Any) -> Checkpointer:
    """With options of the trainer; for one process where no `ranks` are given."""
    ranks = settings.pop("ranks", Ranks(None, 0, 1))
    options = TrainOptions(out_dir=str(out_dir), **settings)
    return Checkpointer(options, ranks, SaveErrors(options.on_save_error, ranks.rank))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs there, for as long as the block runs; skips where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """This process can write no file larger than that, for as long as the block runs."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
