"""Ranks exchange answers through a key-value store, and all continue together or all leave.

Unlike a collective it cannot hang: a rank that does not answer in time is named. `check_network` asks how the
all-reduces went inside every node, between neighbours, over all: in this order, so that a bad node is named.
"""

import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.launch.watchdog import Watchdog

ANSWER_SECONDS = 50.0  # a rank that has not answered for so long is named
EXIT_UNSOUND = 87


class RollCall:
    """One rank's part in it.

    Args:
        watchdog: Has the store, and ends all ranks.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._store = watchdog.own_store("roll call")
        self.launch = watchdog.launch

    @property
    def hosts(self) -> list[str]:
        return self.launch.hosts

    def stage(self, name: str, answer: Any, patience: float = 0.0) -> list[Any]:
        """Answer, and learn the others' answers. Every rank takes part in every stage.

        Args:
            name: Of the stage, used once.
            answer: This rank's, as JSON can hold it.
            patience: Seconds more than ANSWER_SECONDS that a rank may take once it has been named.

        Returns:
            The answers by rank; the process ends with exit code 87 when some are missing.
        """
        patience += ANSWER_SECONDS
        self._store.set(f"{name}/{self.launch.rank}", json.dumps(answer))
        try:
            if self.launch.rank == 0:  # decides alone who is missing, so that all come to the same verdict
                missing = self._await_answers(name, patience)
                self._store.set(f"{name}/missing", json.dumps(missing))
            else:
                self._store.wait([f"{name}/missing"], timedelta(seconds=patience + ANSWER_SECONDS))
                missing = json.loads(self._store.get(f"{name}/missing"))
            if missing:
                self.leave(f"no answer from {self._where(missing)} for {patience:.0f} s")
            answers = self._store.multi_get(_keys(name, range(self.launch.world_size)))
        except dist.DistError:
            # If rank 0 left for a reason of its own, its exit code must be the highest: srun takes that.
            me, first = self.launch.name(self.launch.rank), self.launch.name(0)
            self._watchdog.end(1, f"{first} does not answer {me}")
        return [json.loads(text) for text in answers]

    def group_store(self) -> dist.Store:
        """For the process group's own keys."""
        return self._watchdog.own_store("process group")

    def leave(self, complaint: str) -> NoReturn:
        """End all ranks, as the machinery is not sound. Every rank may call it."""
        self._watchdog.end(EXIT_UNSOUND, complaint)

    def refuse(self, complaint: str) -> NoReturn:
        """End all ranks, as what they were given is not the same for all. Every rank may call it."""
        self._watchdog.end(EXIT_BAD_INPUT, complaint)

    def _await_answers(self, name: str, patience: float) -> list[int]:
        """The ranks that have not answered when patience ends."""
        missing = list(range(self.launch.world_size))
        deadline = time.monotonic() + patience
        while missing and (left := deadline - time.monotonic()) > 0:
            try:
                self._store.wait(_keys(name, missing), timedelta(seconds=min(left, ANSWER_SECONDS)))
            except dist.DistError:
                missing = [rank for rank in missing if not self._store.check(_keys(name, [rank]))]
                if missing and deadline > time.monotonic():
                    print(f"still waiting for {self._where(missing)}", file=sys.stderr, flush=True)
            else:
                missing = []
        return missing

    def _where(self, ranks: list[int]) -> str:
        return ", ".join(self.launch.name(rank) for rank in ranks)


def name_all(hosts: Iterable[str]) -> str:
    return ", ".join(sorted(set(hosts)))


def _keys(name: str, ranks: Sequence[int]) -> list[str]:
    return [f"{name}/{rank}" for rank in ranks]


# An all-reduce that has not ended by then hangs. On CUDA the first one makes contexts and communicators.
COLLECTIVE_SECONDS = {"cuda": 300.0, "cpu": 40.0}
REDUCED_MIB = {"cuda": 256, "cpu": 4}


def check_network(call: RollCall, fabric: Fabric) -> str:
    """Bandwidths in one line. Ends all ranks, naming the nodes, if an all-reduce hangs or is wrong."""
    ranks_on: dict[str, list[int]] = {}
    for rank, host in enumerate(call.hosts):
        ranks_on.setdefault(host, []).append(rank)
    nodes = list(ranks_on.values())
    leaders = [ranks[0] for ranks in nodes]
    inside = _reduce(call, fabric, "inside nodes", nodes)
    if failing := {call.hosts[rank] for rank, result in enumerate(inside) if isinstance(result, str)}:
        call.leave(f"all-reduce inside {name_all(failing)} fails: {_first_fault(inside)}")
    failures: Counter[str] = Counter()
    faults: list[Any] = []
    for parity in (0, 1):
        pairs = [leaders[first : first + 2] for first in range(parity, len(leaders) - 1, 2)]
        results = _reduce(call, fabric, f"between neighbours {parity}", pairs)
        failures.update({call.hosts[rank] for rank, result in enumerate(results) if isinstance(result, str)})
        faults += results
    if failures:
        worst = {host for host, count in failures.items() if count == max(failures.values())}
        call.leave(
            f"all-reduce between nodes fails, most with {name_all(worst)}: {_first_fault(faults)}; look at "
            "NCCL_SOCKET_IFNAME and NCCL_IB_HCA in env.sh, or leave that node out with sbatch --exclude"
        )
    overall = _reduce(call, fabric, "over all", [list(range(fabric.world_size))])
    if any(isinstance(result, str) for result in overall):
        call.leave(f"all-reduce over all ranks fails: {_first_fault(overall)}")
    return _network_line(call.hosts, inside, overall)


def _reduce(call: RollCall, fabric: Fabric, name: str, groups: list[list[int]]) -> list[float | str | None]:
    """All-reduce within each group at the same time.

    Returns:
        By rank: GB/s over the slowest link (2 (n - 1) / n of the bytes, per second), or what went wrong, or
        None for a rank that is in no group of two.
    """
    groups = [group for group in groups if len(group) > 1]
    limit = COLLECTIVE_SECONDS[fabric.device.type]
    result: list[float | str | None] = [f"it does not end within {limit:.0f} s"]

    def reduce_in_thread() -> None:
        try:
            result[0] = _bandwidth(fabric, groups)
        except (RuntimeError, dist.DistError) as error:
            result[0] = " ".join(str(error).split())[:200]

    thread = threading.Thread(target=reduce_in_thread, daemon=True)
    thread.start()
    thread.join(limit)
    return call.stage(name, result[0], patience=limit)


def _bandwidth(fabric: Fabric, groups: list[list[int]]) -> float | str | None:
    """This rank's part of `_reduce`. Making a group is collective over all ranks."""
    device, rank = fabric.device, fabric.global_rank
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a new thread starts with the first device
    # Longer than what the caller waits for: torch's own limit would end the process without naming anything.
    timeout = timedelta(seconds=2 * COLLECTIVE_SECONDS[device.type])
    made = [(group, dist.new_group(group, timeout=timeout)) for group in groups]
    mine = [(group, handle) for group, handle in made if rank in group]
    if not mine:
        return None
    group, handle = mine[0]
    n_bytes = REDUCED_MIB[device.type] * 2**20
    numbers = torch.empty(n_bytes // 4, device=device)
    seconds = []
    for _ in range(4):  # the first one connects; a single one says little on a busy host
        numbers.fill_(1)
        _synchronize(device)
        started = time.perf_counter()
        dist.all_reduce(numbers, group=handle)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    dist.destroy_process_group(handle)
    if not bool((numbers == len(group)).all()):
        return "the sum is wrong: suspect memory or network hardware"
    return 2 * (len(group) - 1) / len(group) * n_bytes / min(seconds) / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _network_line(hosts: Sequence[str], inside: list[Any], overall: list[Any]) -> str:
    """Bandwidths in words, with the nodes that are far slower than most."""
    line = f"all-reduce: {min(overall):.2f} GB/s over all {len(hosts)} ranks"
    speeds = {host: speed for host, speed in zip(hosts, inside, strict=True) if speed is not None}
    if not speeds:
        return line
    median = statistics.median(speeds.values())
    slow = {host for host, speed in speeds.items() if speed < median / 2}
    return f"{line}, {median:.2f} within nodes" + (f"; far slower on {name_all(slow)}" if slow else "")


def _first_fault(results: Sequence[Any]) -> str:
    return next(result for result in results if isinstance(result, str))
