"""One rank of a run that only feeds and logs, committing every fifth step and at the end."""

from pathlib import Path

import torch.distributed as dist

from pretrain.data.numbering import Numbering
from pretrain.datapoints.log import DatapointLog
from tests.pretrain.feeding import GLOBAL_BATCH, feed, open_data
from tests.pretrain.ranks import enter_job


def run(rank: int, port: int, store: Path, out_dir: Path, nodes: int, per_node: int, steps: range) -> None:
    """Feed and log these steps; what is logged from the first on is discarded before."""
    enter_job(rank, nodes * per_node, port)
    dist.init_process_group("gloo")
    groups = [dist.new_group(list(range(node * per_node, (node + 1) * per_node))) for node in range(nodes)]
    data = open_data(store)
    log = DatapointLog(
        out_dir,
        data.describe(),
        numbering=Numbering(GLOBAL_BATCH),
        rank=rank,
        local_rank=rank % per_node,
        node_rank=rank // per_node,
        node_group=groups[rank // per_node],
    )
    if rank == 0:
        log.discard_after(steps[0] - 1)
    dist.barrier()
    loader = feed(data, rank=rank, world_size=nodes * per_node, first_step=steps[0])
    for step in steps:
        log.record(next(loader).rows, 1.7e9 + step)
        if step % 5 == 0 or step == steps[-1]:
            log.commit(step)
    dist.barrier()  # or a slower rank may abort as it leaves, because its peers are gone
    dist.destroy_process_group()
