"""Ranks of a job as processes of a test: they fork off one that has imported torch, which takes seconds."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

import torch  # noqa: F401
from torch.distributed import fsdp  # noqa: F401

from pretrain import parallel  # noqa: F401


def start_ranks(target: Callable[..., object], n_ranks: int, *arguments: object) -> list[ForkServerProcess]:
    """Start target(rank, *arguments) for each rank; it lies in a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
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
