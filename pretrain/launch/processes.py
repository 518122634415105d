"""Where this process stands in its job, and the store through which the job's processes find one another.

srun and torchrun start every process. Otherwise the first process of a node starts the others of that node:
the same command again, each told its place by the variables that torchrun sets, too.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from socket import gethostname
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

UNDETECTED = ("bash", "interactive")  # jobs of these names are not taken for SLURM's by Lightning
LAUNCHER = "LLAMMLEIN_LAUNCHER"  # process id of the one that started this one
PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
PR_SET_PDEATHSIG = 1


@dataclass
class Launch:
    """This process among those of its job."""

    rank: int = 0
    world_size: int = 1
    hosts: list[str] = field(default_factory=lambda: [gethostname()])
    """Name of each rank's node; empty where that is not known yet."""
    launcher: int | None = None
    """The process that must outlive this one; None where there is none."""
    by_srun: bool = False
    others: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    """The processes that this one has started: local ranks 1, 2, ..."""
    store: "dist.TCPStore | None" = None
    """Shared by all ranks once they are connected; rank 0 or torchrun is its server."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Launch":
        """Read off a process's environment; the only process of its job if that does not say more."""
        if is_srun(environment) and not is_torchrun(environment):
            size, per_node = int(environment["SLURM_NTASKS"]), int(environment["SLURM_NTASKS_PER_NODE"])
            nodes = expand_hosts(environment["SLURM_JOB_NODELIST"])
            hosts = [nodes[min(rank // per_node, len(nodes) - 1)] for rank in range(size)]
            return cls(int(environment["SLURM_PROCID"]), size, hosts, os.getppid(), by_srun=True)
        if not environment.keys() >= PLACE:
            return cls()
        size = int(environment["WORLD_SIZE"])
        hosts = [gethostname() if environment["LOCAL_WORLD_SIZE"] == environment["WORLD_SIZE"] else ""] * size
        launcher = int(environment[LAUNCHER]) if LAUNCHER in environment else None
        if is_torchrun(environment):
            launcher = os.getppid()
        return cls(int(environment["RANK"]), size, hosts, launcher)

    def end_with_launcher(self) -> None:
        """Have the kernel kill this process as soon as its launcher has ended, however that ends.

        Not under srun: the kernel means the thread that started this process, and whether SLURM's, or a
        container runtime's, lives as long as its process is not ours to know. `orphaned` sees it there.
        """
        if self.launcher is None or self.by_srun:
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.orphaned:  # before the kernel was told
            os._exit(1)

    @property
    def orphaned(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher is not None and os.getppid() != self.launcher

    @property
    def others_have_ended(self) -> bool:
        """Whether this process has started every other rank, and all of them have ended."""
        started_all = len(self.others) == self.world_size - 1
        return started_all and all(other.poll() is not None for other in self.others)

    def name(self, rank: int) -> str:
        """A rank and its node, for a message."""
        return f"rank {rank} on {self.hosts[rank]}" if self.hosts[rank] else f"rank {rank}"

    def start_others(self, devices: int, num_nodes: int) -> None:
        """Start the other processes of this node where neither srun nor torchrun has: the same command again.

        With several nodes, NODE_RANK, MASTER_ADDR and MASTER_PORT say which is this and where the first is.
        """
        node = int(os.environ.get("NODE_RANK", 0))
        self.rank, self.world_size = node * devices, devices * num_nodes
        self.hosts = ([gethostname()] if num_nodes == 1 else [""]) * self.world_size
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # any: the children are told which
        if node == 0:
            self.connect(timedelta(minutes=5))
        places = [
            {"RANK": self.rank + local_rank, "LOCAL_RANK": local_rank, "NODE_RANK": node}
            | {"WORLD_SIZE": self.world_size, "LOCAL_WORLD_SIZE": devices}
            for local_rank in range(devices)
        ]
        mine, *theirs = [{name: str(value) for name, value in place.items()} for place in places]
        me = {LAUNCHER: str(os.getpid())}
        again = [sys.executable, *sys.orig_argv[1:]]
        self.others = [subprocess.Popen(again, env=os.environ | place | me) for place in theirs]
        os.environ |= mine

    def connect(self, timeout: timedelta, poll: Callable[[], None] = lambda: None) -> "dist.TCPStore":
        """The store that all ranks share.

        Args:
            timeout: Longest wait for rank 0.
            poll: Called about every second of it.

        Raises:
            DistError: rank 0 is not there.
        """
        import torch.distributed as dist

        if self.store is None:
            address, port = self._address()
            of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            is_master = self.rank == 0 and not of_torchrun
            # torch's own wait for the server hears no signal: it gets one second where there is none.
            is_there = is_master or _wait_for_server(address, port, timeout, poll)
            self.store = dist.TCPStore(
                address,
                port,
                is_master=is_master,
                timeout=timeout if is_there else timedelta(seconds=1),
                wait_for_workers=False,
            )
            os.environ["MASTER_PORT"] = str(self.store.port)
        return self.store

    def _address(self) -> tuple[str, int]:
        """Where rank 0 is, and a port of it."""
        if self.by_srun:
            from lightning_fabric.plugins.environments import SLURMEnvironment

            slurm = SLURMEnvironment()
            return slurm.main_address, slurm.main_port
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _wait_for_server(address: str, port: int, timeout: timedelta, poll: Callable[[], None]) -> bool:
    """Wait until something listens there; False if the time is over before."""
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
            return True
        poll()
        time.sleep(0.5)
    return False


def expand_hosts(node_list: str) -> list[str]:
    """The names in SLURM's short form: `gpu[08-10,12],login` is gpu08, gpu09, gpu10, gpu12, login."""
    hosts: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)", node_list):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if part else [""]
            hosts += [f"{prefix}{str(number).zfill(len(first))}{suffix}" for number in numbers]
    return hosts


def is_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether torchrun started this process, be it inside a SLURM job."""
    return "TORCHELASTIC_RUN_ID" in environment


def is_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several."""
    get = environment.get
    is_task = "SLURM_STEP_ID" in environment and "SLURM_NTASKS_PER_NODE" in environment
    return is_task and int(get("SLURM_NTASKS", "1")) > 1 and get("SLURM_JOB_NAME") not in UNDETECTED
