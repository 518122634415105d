"""A model and its optimizer as named tensors: this rank's part of each, copied to the CPU and put back.

The same for plain tensors and FSDP2's DTensors: a rank owns a range of each tensor's rows.
"""

import contextlib
import math
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.cuda._pin_memory_utils import pin_memory, unpin_memory
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lit_gpt.checkpoint.tensor_files import TensorReader, TensorSpec
from lit_gpt.cli import InputError
from lit_gpt.model.gpt import clean_name
from pretrain.checkpoint.collective import Ranks

_HOW_NOT_WHAT = ("params", "foreach", "fused", "capturable", "differentiable")


class Snapshot(NamedTuple):
    """What this rank writes of the model and of the optimizer."""

    model: dict[TensorSpec, Tensor]
    optim: dict[TensorSpec, Tensor]
    scalars: dict[str, Any]
    """The optimizer's step counts and parameter groups, as JSON."""


class Staging:
    """Reusable (on CUDA pinned) host staging buffer for one snapshot, allocated by `reserve`.

    Its size is exactly this rank's share of weights and moments: for AdamW in fp32 12 bytes a parameter,
    divided by the number of ranks that share a copy (`full`: all of it on rank 0, nothing elsewhere).
    Page-locked where the tensors are on a CUDA device, so that they arrive at the bus's speed.
    """

    def __init__(self, ranks: Ranks, full: bool) -> None:
        self._ranks = ranks
        self._full = full
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._unlock = lambda: None

    def reserve(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Allocate what AdamW's snapshots will need, so that too little memory shows at the start."""
        weights = list(model.parameters())
        # In the order in which `take` comes to them: of what several ranks hold, they take turns.
        updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = [parameter for parameter in updated for _ in range(2)]
        specs = [self._spec(index, "", tensor) for index, tensor in enumerate([*weights, *moments])]
        page_lock = weights[0].device.type == "cuda"
        self._grow(sum(_aligned(spec) for spec in specs if spec), page_lock)

    @torch.no_grad()
    def take(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
        """Copy the state as it is now (collective for `full`); the previous snapshot is overwritten."""
        weights = model_tensors(model)
        moments, scalars = optimizer_tensors(model, optimizer)
        tensors = [*weights.values(), *moments.values()]
        specs = [self._spec(index, *item) for index, item in enumerate([*weights.items(), *moments.items()])]
        views = self._views([spec for spec in specs if spec], tensors[0].device.type == "cuda")
        parts: tuple[dict[TensorSpec, Tensor], ...] = ({}, {})
        for index, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
            source = _gathered(tensor) if self._full else local_part(tensor)
            if spec:
                view = next(views)
                view.copy_(source, non_blocking=True)
                parts[index >= len(weights)][spec] = view
        if tensors[0].device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return Snapshot(parts[0], parts[1], scalars)

    def _spec(self, index: int, name: str, tensor: Tensor) -> TensorSpec | None:
        """What this rank writes of a tensor; None where others write it."""
        if self._full:
            return TensorSpec(name, tensor.dtype, tuple(tensor.shape)) if self._ranks.rank == 0 else None
        shape, first_row = rows_of(tensor)
        copy, n_copies = _which_copy(tensor, self._ranks)
        if index % n_copies != copy or (math.prod(shape) == 0 and tensor.numel() > 0):
            return None  # copies take turns; a dimension shorter than the number of ranks leaves some empty
        return TensorSpec(name, tensor.dtype, shape, first_row if shape != tuple(tensor.shape) else None)

    def _views(self, specs: list[TensorSpec], page_lock: bool) -> Iterator[Tensor]:
        """Memory for each spec, in one buffer."""
        self._grow(sum(map(_aligned, specs)), page_lock)
        start = 0
        for spec in specs:
            yield self._buffer[start : start + spec.n_bytes].view(spec.dtype).view(spec.shape)
            start += _aligned(spec)

    def _grow(self, n_bytes: int, page_lock: bool) -> None:
        """Make the buffer at least so large; where it cannot be page-locked, say so."""
        if n_bytes <= len(self._buffer):
            return
        self._unlock()
        self._buffer = torch.empty(n_bytes, dtype=torch.uint8)
        if not page_lock:
            return
        address = self._buffer.data_ptr()
        try:  # torch's own pinned tensors are rounded up to a power of two
            pin_memory(address, n_bytes)
        except RuntimeError as error:
            _clear_cuda_error()
            reason = str(error).partition(".")[0]
            print(
                f"warning: rank {self._ranks.rank}: {n_bytes / 1e9:.1f} GB of memory for checkpoints could "
                f"not be page-locked ({reason}); copying to it takes longer",
                file=sys.stderr,
                flush=True,
            )
            return
        self._unlock = weakref.finalize(self, unpin_memory, address)
        self._unlock.atexit = False


def _aligned(spec: TensorSpec) -> int:
    """Bytes that a tensor takes in the buffer."""
    return -(-spec.n_bytes // 8) * 8


def _clear_cuda_error() -> None:
    """A failed call leaves its error behind for the next kernel launch to raise: launch one here."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live parameters by name; one that is shared appears once."""
    return {clean_name(name): parameter.detach() for name, parameter in model.named_parameters()}


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The live state by name as DCP flattens it (`state.<parameter>.exp_avg`), and all that is a number."""
    states, groups = _optimizer_state(model, optimizer)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, values in states.items():
        for key, value in values.items():
            if value.dim() > 0:
                tensors[f"state.{name}.{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = _number(value)
    plain = [{key: _number(value) for key, value in group.items()} for group in groups]
    return tensors, {"state": numbers, "param_groups": plain}


@torch.no_grad()
def restore_model(model: nn.Module, reader: TensorReader, exact: bool) -> None:
    """Read the parameters, each rank its rows, straight into the model.

    Raises:
        InputError: a name or shape that differs (with `exact` also a dtype): another model's weights.
    """
    _restore(model_tensors(model), reader, exact)


@torch.no_grad()
def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, reader: TensorReader, scalars: Mapping[str, Any]
) -> None:
    """Put moments, step counts and parameter groups back, bit for bit.

    Raises:
        InputError: the optimizer is grouped otherwise, or its tensors differ.
    """
    states, groups = _optimizer_state(model, optimizer)
    if [group["params"] for group in scalars["param_groups"]] != [group["params"] for group in groups]:
        raise InputError(f"{reader.folder}: the optimizer's parameter groups are not those of this run")
    _restore(optimizer_tensors(model, optimizer)[0], reader, exact=True)
    for name, values in scalars["state"].items():
        for key, value in values.items():
            states[name][key].fill_(value)
    for group, saved in zip(optimizer.param_groups, scalars["param_groups"], strict=True):
        for key in saved.keys() - set(_HOW_NOT_WHAT):
            if isinstance(group[key], Tensor):
                group[key].fill_(saved[key])
            else:
                group[key] = tuple(saved[key]) if isinstance(saved[key], list) else saved[key]


def _optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """State and groups by the parameters' names; a fresh optimizer is given its tensors."""
    state: Any = get_optimizer_state_dict(model, optimizer)
    states = {clean_name(name): values for name, values in state["state"].items()}
    groups = [
        {**group, "params": [clean_name(name) for name in group["params"]]} for group in state["param_groups"]
    ]
    return states, groups


def rows_of(tensor: Tensor) -> tuple[tuple[int, ...], int]:
    """Shape of the part of a tensor that this rank holds, and the number of its first row."""
    if not isinstance(tensor, DTensor):
        return tuple(tensor.shape), 0
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert not any(offset[1:]), "FSDP2 shards dimension 0"
    return tuple(shape), offset[0]


def _restore(tensors: Mapping[str, Tensor], reader: TensorReader, exact: bool) -> None:
    if differing := sorted(set(reader.keys()) ^ tensors.keys()):
        where = "the model" if differing[0] in tensors else "the checkpoint"
        raise InputError(f"{reader.folder}: {differing[0]} is only in {where}: not the same model")
    for name, tensor in tensors.items():
        if reader.shape(name) != tuple(tensor.shape):
            raise InputError(
                f"{reader.folder}: {name} is {list(reader.shape(name))} in the checkpoint and "
                f"{list(tensor.shape)} in the model: not the same model"
            )
        if exact and reader.dtype(name) != tensor.dtype:
            raise InputError(
                f"{reader.folder}: {name} is {reader.dtype(name)} in the checkpoint and {tensor.dtype} in "
                "the model: resume with the precision it was saved with"
            )
    for name, tensor in tensors.items():
        shape, first_row = rows_of(tensor)
        local_part(tensor).copy_(reader.read_rows(name, first_row, shape[0]) if shape else reader.read(name))


def _which_copy(tensor: Tensor, ranks: Ranks) -> tuple[int, int]:
    """Of ranks that hold the same rows: which this one is, and how many there are."""
    if not isinstance(tensor, DTensor):
        return ranks.rank, ranks.world_size
    copy, n_copies = 0, 1
    coordinate = tuple(tensor.device_mesh.get_coordinate() or ())
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            size = tensor.device_mesh.size(dimension)
            copy, n_copies = copy * size + coordinate[dimension], n_copies * size
    return copy, n_copies


def local_part(tensor: Tensor) -> Tensor:
    """The memory that this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
