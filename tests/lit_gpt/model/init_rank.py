"""One rank of a sharded model, which must equal the whole."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from tests.pretrain.ranks import enter_job


def compare(rank: int, world_size: int, port: int) -> None:
    """Initial weights, loss and gradients."""
    torch.set_num_threads(1)
    enter_job(rank, world_size, port)
    dist.init_process_group("gloo")
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
