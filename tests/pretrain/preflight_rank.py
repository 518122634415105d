"""One rank of a job on two pretended nodes, for test_preflight.py: the pre-flight, with a fault on one rank.

Where a rank never answers, the limits are such that a test can wait for them.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

from pretrain import parallel
from pretrain.launch import preflight, roll_call
from pretrain.launch.stop import StopRequest
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from tests.pretrain.ranks import enter_job

N_RANKS = 4
NEVER_WAITED_FOR = ("none", "wrong sum", "another folder")


def run(rank: int, port: int, folder: Path, fault: str) -> None:
    """Print what the pre-flight reports, or leave as it leaves; output goes to FOLDER/RANK.txt."""
    with (folder / f"{rank}.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    enter_job(rank, N_RANKS, port)
    os.environ["SLURMD_NODENAME"] = f"node{rank // 2}"
    limit = 60.0 if fault in NEVER_WAITED_FOR else 3.0
    roll_call.ANSWER_SECONDS = 2 * limit
    roll_call.COLLECTIVE_SECONDS = {"cpu": limit}
    preflight.CONNECT_SECONDS = {"cpu": 3 * limit}
    watchdog = Watchdog(StopRequest())
    options = TrainOptions(accelerator="cpu", devices=N_RANKS)
    call = preflight.join(options, watchdog)
    if rank == 2 and fault == "not connected":
        dist.init_process_group = lambda *args, **kwargs: time.sleep(60)
    preflight.connect(call, "cpu")
    fabric = parallel.launch(options)
    out_dir = folder / "out"
    if rank == 3 and fault == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if rank == 3 and fault == "hangs":
        dist.all_reduce = lambda *args, **kwargs: time.sleep(60)
    if rank == 3 and fault == "wrong sum":
        dist.all_reduce = functools.partial(_reduce_wrongly, dist.all_reduce)
    if fault == "no way between nodes":
        dist.new_group = functools.partial(_group_of_own_node, dist.new_group)
    if rank == 2 and fault == "another folder":
        out_dir = folder / "elsewhere"
    out_dir.mkdir(exist_ok=True)
    lines = preflight.preflight(call, fabric, [], out_dir)
    print("\n".join(lines) if rank == 0 else "")
    sys.stdout.flush()
    dist.barrier()
    watchdog.close()
    os._exit(0)


def _reduce_wrongly(reduce, numbers, **options):
    reduce(numbers, **options)
    numbers[5] += 1


def _group_of_own_node(new_group, ranks, **options):
    if len({rank // 2 for rank in ranks}) > 1:
        time.sleep(60)
    return new_group(ranks, **options)
