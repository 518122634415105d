"""Several processes on gloo train what one process trains."""

import os
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from lit_gpt.checkpoint.folder import folder_name
from lit_gpt.cli import InputError
from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain import parallel
from pretrain.launch import preflight
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.metrics import read_metrics
from pretrain.options import TrainOptions
from scripts.faults.ports import free_ports
from tests.pretrain.ranks import enter_job, run_ranks, train_on_ranks
from tests.pretrain.running import assert_same_checkpoint, losses, open_run, train

CONFIG = ModelConfig.load("tiny_100K", vocab_size=96)


def test_deterministic_does_not_fill_memory_that_is_written_anyway(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        parallel.launch(TrainOptions(accelerator="cpu", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        with torch.profiler.profile() as profiler:
            torch.empty(10)
        assert "aten::fill_" not in {event.key for event in profiler.key_averages()}
    finally:
        torch.use_deterministic_algorithms(False)


# One document a row, most slots masked: ranks have very different numbers of targets.
FLAGS = {
    "packing": "one_per_row",
    "max_steps": 20,
    "global_batch_size": 8,
    "eval_step_interval": 10,
    "eval_iters": 7,
    "grad_clip": 0.5,
    "save_step_interval": 0,
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, train_store_dir, val_store_dir):
    out_dir = tmp_path_factory.mktemp("one_process")
    open_run(out_dir, train_store_dir, val_data_dir=[str(val_store_dir)], **FLAGS).fit()
    return out_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "strategy", "flags"),
    [
        (4, "FULL_SHARD", {}),
        (2, "SHARD_GRAD_OP", {"activation_checkpointing": "selective"}),
        (4, "HYBRID_SHARD", {"shard_group_size": 2}),
        (2, "NO_SHARD", {"activation_checkpointing": "full"}),
    ],
)
def test_losses_equal_those_of_one_process(
    one_process, tmp_path, train_store_dir, val_store_dir, devices, strategy, flags
):
    flags = FLAGS | {"sharding_strategy": strategy, "val_data_dir": [str(val_store_dir)]} | flags
    train_on_ranks(devices, tmp_path, train_store_dir, **flags)
    assert losses(tmp_path) == pytest.approx(losses(one_process), abs=1e-5)
    for name in ("val_loss", "grad_norm"):
        ours, theirs = (
            [row[name] for row in read_metrics(d / "metrics.csv")] for d in (tmp_path, one_process)
        )
        assert [value is None for value in ours] == [value is None for value in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-4)


def _reduce_gradients(rank: int, world_size: int, port: int) -> None:
    """One rank of a sharded bf16-true model."""
    torch.set_num_threads(1)
    enter_job(rank, world_size, port)
    options = TrainOptions(devices=world_size, accelerator="cpu", precision="bf16-true")
    fabric = parallel.launch(options)
    model = parallel.build_model(fabric, options, CONFIG)
    alone = GPT(CONFIG).to(torch.bfloat16)
    alone.init_weights(options.seed)

    ids = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(rank))
    positions = torch.arange(16).expand(2, 16)
    batch = (ids, positions, Documents(torch.tensor([0, 16, 32], dtype=torch.int32), 16), ids.roll(-1, 1))
    with CommDebugMode() as traffic:
        fabric.backward(model(*batch))
    # Each block before its forward and its backward pass, embedding, last norm and head once.
    gathers = sum(n for op, n in traffic.get_comm_counts().items() if "allgather" in str(op))
    assert gathers == 2 * CONFIG.n_layer + 1, traffic.get_comm_counts()

    alone(*batch).backward()
    for parameter, other in zip(model.parameters(), alone.parameters(), strict=True):
        everyone = [torch.empty_like(other.grad, dtype=torch.float64) for _ in range(world_size)]
        dist.all_gather(everyone, other.grad.double())
        mean = torch.stack(everyone).mean(0)
        error = (parameter.grad.full_tensor().double() - mean).abs()
        assert (error <= 1.001 * 2**-8 * mean.abs()).all()  # rounded to bf16 once, after the sum over ranks
    fabric.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_are_summed_in_fp32_and_nothing_is_gathered_twice():
    """Four ranks: of fewer, sums in bf16 would round no more often."""
    run_ranks(_reduce_gradients, 4, 4, *free_ports(1))


TWENTY_STEPS = {"max_steps": 20, "save_step_interval": 10, "eval_step_interval": 10}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, train_store_dir, val_store_dir):
    out_dir = tmp_path_factory.mktemp("plain")
    result = train(out_dir, train_store_dir, val_data_dir=val_store_dir, **TWENTY_STEPS)
    assert "not sharded" in result.stdout, result.stderr
    return out_dir


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "NO_SHARD"])
def test_one_device_sharded_by_force_is_the_same_run(
    plain, tmp_path, train_store_dir, val_store_dir, strategy
):
    """Process group, mesh, staging, the gloo group beside it, validation, resuming: bitwise the same."""
    forced = tmp_path / "forced"
    flags = TWENTY_STEPS | {"val_data_dir": val_store_dir}
    flags |= {"force_sharding": "true", "sharding_strategy": strategy}
    result = train(forced, train_store_dir, **flags)
    assert f"{strategy}, not compiled" in result.stdout, result.stderr
    assert losses(forced) == losses(plain)
    assert_same_checkpoint(forced, plain, 20)

    shutil.rmtree(forced / folder_name(20))
    result = train(forced, train_store_dir, resume="auto", **flags)
    assert "at step 10" in result.stdout, result.stderr
    assert losses(forced) == losses(plain)
    assert_same_checkpoint(forced, plain, 20)


def _node_group_of_the_first_node(rank: int, port: int) -> None:
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    if rank < 2:  # the other node's ranks are busy, or dead
        numbers = torch.ones(1)
        dist.all_reduce(numbers, group=parallel.new_node_group(2, 0))
        assert numbers.item() == 2
    os._exit(0)


def test_a_node_group_needs_no_other_node():
    run_ranks(_node_group_of_the_first_node, 4, *free_ports(1))


@pytest.fixture
def fake_nvidia_smi(tmp_path, monkeypatch):
    """A driver that shows two GPUs, on a machine whose torch sees none."""
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: H200 (UUID: x)'\necho 'GPU 1: H200 (UUID: y)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_job_does_not_train_on_the_cpu_by_itself(fake_nvidia_smi, monkeypatch, variable):
    monkeypatch.setenv(variable, "7")
    with pytest.raises(InputError, match=r"nvidia-smi shows 2.*give --accelerator cpu"):
        parallel.resolve_accelerator("auto")
    assert parallel.resolve_accelerator("cpu") == "cpu"


def test_a_gpu_that_torch_does_not_see_is_said_aloud(fake_nvidia_smi, monkeypatch, capsys):
    for variable in ("SLURM_JOB_ID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    watchdog = Watchdog(StopRequest())
    preflight.join(TrainOptions(), watchdog)
    watchdog.close()
    assert (
        "warning: training on the CPU: torch sees no GPU, but nvidia-smi shows 2" in capsys.readouterr().err
    )
    with pytest.raises(InputError, match="nvidia-smi shows 2"):
        parallel.resolve_accelerator("cuda")
