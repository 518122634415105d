"""Devices, processes and how the model is laid over them.

One process trains a plain module. More (or one, with `--force_sharding`) use FSDP2 through Fabric's
ModelParallelStrategy, on GPUs over NCCL and on CPUs over gloo alike:

    FULL_SHARD     parameters, gradients and moments are split over all ranks
    SHARD_GRAD_OP  the same, but parameters stay gathered between forward and backward
    HYBRID_SHARD   split within a group (a node), copied between groups
    NO_SHARD       every rank holds a copy
"""

import logging
import os
import socket
import subprocess
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain import kernels, trainable
from pretrain.launch.processes import is_torchrun

if TYPE_CHECKING:
    from pretrain.options import TrainOptions

# Later than any limit of the watchdog, which says where a rank hangs, with all stacks and an exit code of its
# own: torch would end the process without. A rank that dies is noticed at once, whatever the timeout.
PROCESS_GROUP_TIMEOUT = timedelta(days=1)


def launch(options: "TrainOptions") -> Fabric:
    """Start the processes (or join those that srun or torchrun started) and connect them."""
    device_type = resolve_accelerator(options.accelerator)
    precision = resolve_precision(options.precision, device_type)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses to be repeatable without
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory that was not written: filling every new tensor would cost a pass over it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest" if precision == "32-true" else "high")
    strategy: Strategy
    if not options.sharded:
        strategy = SingleDeviceStrategy(torch.device(device_type, 0) if device_type == "cuda" else "cpu")
        fabric_precision = precision
    else:
        strategy = ModelParallelStrategy(
            parallelize_fn=_sharding_function(options, precision),
            data_parallel_size=options.world_size,
            tensor_parallel_size=1,
            timeout=PROCESS_GROUP_TIMEOUT,
        )
        # FSDP2's own policy lowers the precision: Fabric's would make the optimizer's moments bf16.
        fabric_precision = "32-true"
    # Both would be said at every start, and neither asks for anything to be done.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device_type,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        precision=fabric_precision,
    )
    fabric.launch()
    return fabric


def resolve_accelerator(requested: str) -> str:
    """`auto` to what is there.

    Raises:
        InputError: CUDA was asked for, or is what SLURM and torchrun are for, and there is none.
    """
    if requested == "cpu" or torch.cuda.is_available():
        return "cpu" if requested == "cpu" else "cuda"
    none = f"torch sees no CUDA device on {socket.gethostname()}{gpus_unseen()}"
    if requested == "cuda":
        raise InputError(f"--accelerator cuda: {none}; fix that, or give --accelerator cpu")
    if "SLURM_JOB_ID" in os.environ or is_torchrun(os.environ):
        raise InputError(
            f"{none}; ask for GPUs or fix the driver, or give --accelerator cpu to train without"
        )
    return "cpu"


def gpus_unseen() -> str:
    """What nvidia-smi shows although torch sees no GPU, for a message; empty if it shows none either."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    shown = sum(line.startswith("GPU ") for line in listed.splitlines())
    return (
        f", but nvidia-smi shows {shown}: this torch ({torch.__version__}) and the driver disagree"
        if shown
        else ""
    )


def resolve_precision(requested: str, device_type: str) -> str:
    """`auto` to bf16 arithmetic over fp32 weights on CUDA, and to fp32 on CPU."""
    if requested == "auto":
        return "bf16-mixed" if device_type == "cuda" else "32-true"
    return requested


def build_model(
    fabric: Fabric, options: "TrainOptions", config: ModelConfig, draw_weights: bool = True
) -> nn.Module:
    """A model laid out over the processes, with initial weights that depend on the seed alone.

    The order matters: checkpoint wrappers inside, compiled blocks around them, shards outermost.

    Args:
        draw_weights: False: leave them arbitrary, to be loaded. Drawing takes minutes for 7B.
    """
    with torch.device("meta"):
        model = GPT(config)
    trainable.freeze(model, trainable.frozen_rows(options.trainable, config))
    if options.float8:
        kernels.use_float8(model)
    _checkpoint_activations(model, options.activation_checkpointing)
    if kernels.is_compiled(options, fabric.device.type):
        model.transformer.compile_blocks()
    if not options.sharded:
        model = model.to_empty(device=fabric.device)
        if options.precision == "bf16-true":
            model = model.to(torch.bfloat16)
    # A sharded model gets its memory in here, after it has been sharded.
    trained = fabric.setup_module(model)
    model.tie_weights()  # leaving the meta device unties them
    if draw_weights:
        model.init_weights(options.seed)
    return trained


def sync_gradients(model: nn.Module, last: bool) -> None:
    """HSDP: all-reduce across replicas on the last micro-batch only.

    The reduce-scatter within a shard group comes with every micro-batch: accumulated gradients stay sharded.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(last, recurse=True)
            return


def reshard(model: nn.Module) -> None:
    """After a forward pass without backward: free the gathered parameters, which saving cannot handle."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place; the tensor itself when there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def new_gloo_group() -> "dist.ProcessGroup | None":
    """A group on the CPU for flags and checkpoints, apart from the training's own; None for one process."""
    if not dist.is_initialized():
        return None
    return dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT)


def new_node_group(devices: int, node_rank: int) -> "dist.ProcessGroup | None":
    """A gloo group of the ranks of this node. Collective over them alone."""
    if not dist.is_initialized():
        return None
    ranks = list(range(node_rank * devices, (node_rank + 1) * devices))
    group = dist.new_group(
        ranks, timeout=PROCESS_GROUP_TIMEOUT, backend="gloo", use_local_synchronization=True
    )
    return cast("dist.ProcessGroup", group)


def _sharding_function(
    options: "TrainOptions", precision: str
) -> Callable[[nn.Module, DeviceMesh], nn.Module]:
    def shard(model: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        gpt = cast(GPT, model)
        if precision == "bf16-true":
            gpt = gpt.to(torch.bfloat16)
        mesh, policy = _mesh(options, device_mesh), _mixed_precision(precision)
        reshard = options.sharding_strategy in ("FULL_SHARD", "HYBRID_SHARD")
        for block in gpt.transformer.h:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        # The backward pass begins with what the root holds: head, norm and embedding, given up after the
        # forward pass, would be gathered again at once.
        fully_shard(gpt, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        gpt.to_empty(device=_this_device(device_mesh))
        return gpt

    return shard


def _this_device(device_mesh: DeviceMesh) -> torch.device:
    """The device of this rank in the mesh."""
    if device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device_mesh.device_type)


def _mesh(options: "TrainOptions", device_mesh: DeviceMesh) -> DeviceMesh:
    """One dimension to shard over everything; (copies, shards) where the model is copied."""
    if options.sharding_strategy in ("FULL_SHARD", "SHARD_GRAD_OP"):
        return device_mesh["data_parallel"]
    group = 1 if options.sharding_strategy == "NO_SHARD" else options.shard_group_size or options.devices
    shape = (options.world_size // group, group)
    return init_device_mesh(device_mesh.device_type, shape, mesh_dim_names=("replicate", "shard"))


def _mixed_precision(precision: str) -> MixedPrecisionPolicy:
    """What is computed in bf16. Gradients are summed over ranks in fp32; RoPE tables are not cast."""
    param_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    return MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _checkpoint_activations(model: GPT, which: str) -> None:
    """Wrap every block ("full") or every second one ("selective")."""
    step = {"none": 0, "selective": 2, "full": 1}[which]
    blocks = model.transformer.h
    for index in range(0, len(blocks), step) if step else ():
        blocks[index] = checkpoint_wrapper(blocks[index])
