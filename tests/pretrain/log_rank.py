"""One rank of a run that only feeds and logs, committing every fifth step and at the end.

python log_rank.py STORE OUT MEETING_FILE RANK NODES RANKS_PER_NODE AFTER_STEP LAST_STEP
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch.distributed as dist

from pretrain.data.numbering import Numbering
from pretrain.datapoints.log import DatapointLog
from tests.pretrain.feeding import GLOBAL_BATCH, feed, open_data

if __name__ == "__main__":
    store, out_dir, meeting = sys.argv[1:4]
    rank, nodes, per_node, after, last = map(int, sys.argv[4:])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=nodes * per_node)
    groups = [dist.new_group(list(range(node * per_node, (node + 1) * per_node))) for node in range(nodes)]
    data = open_data(store)
    log = DatapointLog(
        Path(out_dir),
        data.describe(),
        numbering=Numbering(GLOBAL_BATCH),
        rank=rank,
        local_rank=rank % per_node,
        node_rank=rank // per_node,
        node_group=groups[rank // per_node],
    )
    if rank == 0:
        log.discard_after(after)
    dist.barrier()
    loader = feed(data, rank=rank, world_size=nodes * per_node, first_step=after + 1)
    for step in range(after + 1, last + 1):
        log.record(next(loader).rows, 1.7e9 + step)
        if step % 5 == 0 or step == last:
            log.commit(step)
    dist.destroy_process_group()
