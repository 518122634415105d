"""One rank of a sharded bf16-true model, `sharded_rank.py RANK WORLD_SIZE PORT`: exits 0 if all holds."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain import parallel
from pretrain.options import TrainOptions

CONFIG = ModelConfig.load("tiny_100K", vocab_size=96)


def main(rank: int, world_size: int, port: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
