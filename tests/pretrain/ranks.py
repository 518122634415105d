"""Ranks of a job as processes of a test: they fork off one that has imported torch, which takes seconds."""

import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scripts.faults.ports import free_ports
from scripts.faults.rank import PRELOADED
from tests.pretrain.running import open_run


def start_ranks(target: Callable[..., object], n_ranks: int, *arguments: object) -> list[ForkServerProcess]:
    """Start target(rank, *arguments) for each rank; it lies in a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ranks = [context.Process(target=target, args=(rank, *arguments), daemon=True) for rank in range(n_ranks)]
    for process in ranks:
        process.start()
    return ranks


def run_ranks(target: Callable[..., object], n_ranks: int, *arguments: object) -> None:
    """Run target(rank, *arguments) on each rank to its end, which must be a good one."""
    ranks = start_ranks(target, n_ranks, *arguments)
    deadline = time.monotonic() + 300
    running = {process.sentinel: process for process in ranks}
    while running and all(process.exitcode in (0, None) for process in ranks):
        ended = wait(running, deadline - time.monotonic())
        if not ended:
            break
        for sentinel in ended:
            running.pop(sentinel).join()
    for process in running.values():  # one has failed, or the time is over: they would wait for each other
        process.kill()
        process.join()
    assert [process.exitcode for process in ranks] == [0] * n_ranks


def enter_job(rank: int, world_size: int, port: int) -> None:
    """Make this process a rank, as torchrun does."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }


def train_on_ranks(n_ranks: int, out_dir: Path, store: Path, **flags: Any) -> None:
    """Run to the end; options as `open_run` takes them."""
    run_ranks(_train, n_ranks, n_ranks, *free_ports(1), out_dir, store, flags)


def _train(rank: int, n_ranks: int, port: int, out_dir: Path, store: Path, flags: dict[str, Any]) -> None:
    gc.freeze()  # or the first collection looks at all that was imported before the fork
    torch.set_num_threads(1)  # bitwise equality holds for one number of threads
    enter_job(rank, n_ranks, port)
    open_run(out_dir, store, **flags | {"devices": n_ranks}).fit()
    if n_ranks > 1:
        dist.barrier()  # or a slower rank may abort as it leaves, because its peers are gone
        dist.destroy_process_group()
