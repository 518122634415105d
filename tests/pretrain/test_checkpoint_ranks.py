"""Several real processes over gloo: any number resumes any other; what fails on one fails on all."""

import json
import os
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoint.folder import DamagedCheckpoint, folder_name, list_checkpoints, verify
from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from pretrain import parallel
from pretrain.checkpoint.collective import Ranks
from pretrain.options import TrainOptions
from scripts.faults.ports import free_ports
from tests.disks import read_as_nobody
from tests.pretrain.ranks import enter_job, run_ranks
from tests.pretrain.saving import assert_same, checkpointer, everything, optimizer_of, train
from tests.scripts.our_model import reader_of

# Rows that 2, 3 and 4 ranks share unevenly.
SHAPE = ModelConfig("odd", 2, 2, 1, 20, 29, 16, vocab_size=31)

# World size, strategy and kind of checkpoint, one after the other over the same run.
STAGES = [
    (4, "FULL_SHARD", "sharded"),
    (2, "FULL_SHARD", "full"),
    (1, "FULL_SHARD", "sharded"),
    (3, "NO_SHARD", "sharded"),
    (4, "HYBRID_SHARD", "sharded"),
    (3, "SHARD_GRAD_OP", "full"),
]


class Run:
    """One rank of one stage."""

    def __init__(
        self, out_dir: Path, rank: int, port: int, world_size: int, strategy: str, kind: str
    ) -> None:
        enter_job(rank, world_size, port)
        group = 2 if strategy == "HYBRID_SHARD" else None
        options = TrainOptions(
            devices=world_size, accelerator="cpu", sharding_strategy=strategy, shard_group_size=group
        )
        fabric = parallel.launch(options)
        self.model = parallel.build_model(fabric, options, SHAPE)
        self.optimizer = optimizer_of(self.model)
        fabric.setup_optimizers(self.optimizer)
        self.rank = rank
        ranks = Ranks(parallel.new_gloo_group(), rank, world_size)
        self.saver = checkpointer(out_dir, ranks=ranks, state_dict_type=kind, keep_last=0)

    def everything(self):
        return everything(self.model, self.optimizer)

    def resume(self) -> int:
        return self.saver.load(self.saver.find("auto"), self.model, self.optimizer)["step"]

    def leave(self) -> None:
        self.saver.close()
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _record(folder: Path, state) -> None:
    """By safetensors itself, apart from the code under test."""
    save_file(
        {name: tensor.contiguous() for name, tensor in state[0].items()}, folder / "expected.safetensors"
    )
    (folder / "expected.json").write_text(json.dumps(state[1]))


def _recorded(folder: Path):
    return load_file(folder / "expected.safetensors"), json.loads((folder / "expected.json").read_text())


def _pass_on(rank: int, folder: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for number, (world_size, strategy, kind) in enumerate(STAGES):
        if rank >= world_size:
            continue
        run = Run(folder / "run", rank, ports[number], world_size, strategy, kind)
        step = 0
        if number > 0:
            step = run.resume()
            tensors, scalars = run.everything()
            assert_same((tensors, json.loads(json.dumps(scalars))), _recorded(folder))
        run.saver.reserve(run.model, run.optimizer)
        reserved = run.saver._staging._buffer
        train(run.model, run.optimizer, range(step + 1, step + 3))
        run.saver.save(step + 2, run.model, run.optimizer, {})
        assert run.saver._staging._buffer is reserved  # large enough under every strategy
        expected = run.everything()
        train(run.model, run.optimizer, range(step + 3, step + 4))  # while it is being written
        run.saver.wait()
        if rank == 0:
            _record(folder, expected)
        run.leave()


@pytest.mark.slow
def test_any_number_of_ranks_resumes_any_other_bit_for_bit(tmp_path):
    (tmp_path / "run").mkdir()
    run_ranks(_pass_on, 4, tmp_path, free_ports(len(STAGES)))
    folders = list_checkpoints(tmp_path / "run")
    assert [step for step, _ in folders] == [2 * (number + 1) for number in range(len(STAGES))]
    for (world_size, strategy, kind), (_, folder) in zip(STAGES, folders, strict=True):
        manifest = verify(folder)
        assert (manifest.world_size, manifest.state_dict_type) == (world_size, kind)
        writers = {name for name in manifest.files if name.startswith("model/")}
        assert len(writers) == (1 if kind == "full" else world_size), (strategy, writers)
    last, tensors = reader_of(folders[-1][1]), _recorded(tmp_path)[0]
    assert all(torch.equal(last.read(name), tensors[name]) for name in last.keys())  # noqa: SIM118


def _suffer(rank: int, folder: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    run = Run(folder / "run", rank, ports[0], 2, "FULL_SHARD", "sharded")
    for step in (1, 2, 3):
        train(run.model, run.optimizer, range(step, step + 1))
        run.saver.save(step, run.model, run.optimizer, {})
        if step == 2:
            expected = run.everything()
    run.saver.close()

    newest = folder / "run" / folder_name(3)
    manifest = verify(newest)
    smaller = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)[1]
    dist.barrier()

    # Rank 1 may not read what rank 0 can: something is wrong with its node, not with the checkpoint.
    with read_as_nobody(newest / smaller) if rank == 1 and os.geteuid() == 0 else nullcontext():
        dist.barrier()
        if os.geteuid() == 0 or rank == 1:
            message = (
                rf"{smaller}: cannot be read: Permission denied \(rank 1 on .*; rank 0 reads it as it was"
            )
            with pytest.raises(InputError, match=message) as caught:
                run.saver.find("true")
            assert not isinstance(caught.value, DamagedCheckpoint)
        dist.barrier()
    assert newest.exists()

    # A shard that only rank 1 reads is damaged: both go back to the same checkpoint.
    if rank == 0:
        data = bytearray((newest / smaller).read_bytes())
        data[-1] ^= 1
        (newest / smaller).write_bytes(data)
    dist.barrier()
    with pytest.raises(InputError, match="content does not match"):
        run.saver.find(str(newest))
    assert run.resume() == 2
    assert_same(run.everything(), expected)
    assert not newest.exists()

    # Rank 1 alone cannot write.
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    run.saver.save(4, run.model, run.optimizer, {})
    run.saver.wait()
    assert run.saver.errors.stop
    with pytest.raises(InputError, match=r"iter-00000004-.*rank-00001-000.*: File too large \(rank 1 on"):
        run.saver.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert run.resume() == 2
    run.saver.save(4, run.model, run.optimizer, {})
    run.leave()


@pytest.mark.slow
def test_what_fails_on_one_rank_fails_on_all(tmp_path):
    (tmp_path / "run").mkdir()
    run_ranks(_suffer, 2, tmp_path, free_ports(1))
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [1, 2, 4]
    assert sorted(path.name for path in (tmp_path / "run").glob("*damaged*")) == [
        "iter-00000003-ckpt.pth.damaged",
        "iter-00000003-ckpt.pth.damaged.txt",
    ]
