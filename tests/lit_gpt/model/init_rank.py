"""One rank of a sharded model, `init_rank.py RANK WORLD_SIZE STORE_FILE`: exits 0 if it equals the whole."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT


def main(rank: int, world_size: int, store_file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store_file}", rank=rank, world_size=world_size)
    config = ModelConfig.load("tiny_100K", vocab_size=96)
    alone = GPT(config)
    alone.init_weights(7)
    with torch.device("meta"):
        sharded = GPT(config)
    mesh = init_device_mesh("cpu", (world_size,))
    for module in (*sharded.transformer.h, sharded):
        fully_shard(module, mesh=mesh)
    sharded.to_empty(device="cpu")
    sharded.init_weights(7)
    for parameter, expected in zip(sharded.parameters(), alone.parameters(), strict=True):
        assert torch.equal(parameter.full_tensor(), expected)

    ids = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(2, 16)
    documents = Documents(torch.tensor([0, 16, 32], dtype=torch.int32), 16)
    losses = [model(ids, positions, documents, ids.roll(-1, 1)) for model in (sharded, alone)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for parameter, expected in zip(sharded.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad)
    dist.barrier()  # or a slower rank may abort as it leaves, because its peers are gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
