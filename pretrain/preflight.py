"""Is this job's machinery sound? Found out in a minute, and the node that is not is named.

    ranks = check_launch(devices, num_nodes)   launch mistakes; under srun, ranks that are missing
    with connecting(ranks): ...                ranks that cannot join the process group
    preflight(fabric, stores, out_dir)         devices, folders, all-reduce within and between nodes

Without them a wrong launch or a broken node shows as a job that hangs until its time limit.
"""

import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment

from lit_gpt.cli import InputError
from lit_gpt.packing import PackedStore
from pretrain.launch_mistakes import expand_hosts, is_torchrun, launch_mistake
from pretrain.network_check import check_network
from pretrain.roll_call import RollCall, leave, name_all

LATE_START_SECONDS = 300.0  # importing from a slow file system may take some ranks long
READING_SECONDS = 3600.0  # so may packing a large store
CONNECT_SECONDS = 45.0
ROLL_CALL_PORT_OFFSET = 10_000  # from the process group's port


def check_launch(devices: int, num_nodes: int, accelerator: str = "auto") -> RollCall | None:
    """Refuse a launch that would hang or train several times over; under srun, wait for every rank.

    To be called on every rank before anything slow. Ranks that are missing are named within a minute; if
    they have not come after LATE_START_SECONDS, the process ends with exit code 87.

    Args:
        devices: Processes that each node should run.
        num_nodes: Nodes of the job.
        accelerator: "cpu" if GPUs do not matter.

    Returns:
        What `connecting` takes; None if srun did not start the processes, or one only.

    Raises:
        InputError: a launch mistake; one line that says the fix.
    """
    visible_gpus = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if mistake := launch_mistake(devices, num_nodes, os.environ, visible_gpus):
        raise InputError(mistake)
    world_size = devices * num_nodes
    if world_size == 1 or "SLURM_STEP_ID" not in os.environ or is_torchrun(os.environ):
        return None
    slurm = SLURMEnvironment()
    rank, port = slurm.global_rank(), slurm.main_port + ROLL_CALL_PORT_OFFSET
    try:
        store = dist.TCPStore(
            slurm.main_address,
            port,
            is_master=rank == 0,
            timeout=timedelta(seconds=LATE_START_SECONDS),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        leave(
            f"rank {rank} on {gethostname()} does not reach rank 0 at {slurm.main_address}:{port} "
            f"({' '.join(str(error).split())[:120]}): is that node up, and MASTER_ADDR its address?"
        )
    nodes = expand_hosts(os.environ["SLURM_JOB_NODELIST"])
    call = RollCall(store, rank, [nodes[index // devices] for index in range(world_size)])
    call.stage("start", None, patience=LATE_START_SECONDS)
    return call


@contextmanager
def connecting(ranks: RollCall | None) -> Iterator[None]:
    """Inside it the process group is made. Ranks may come late, when reading data took them long.

    Ends the process with exit code 87 if it hangs, after one line that names the nodes where it does.
    """
    if ranks is None:
        yield
        return
    ranks.stage("connect", None, patience=READING_SECONDS)
    is_connected = threading.Event()

    def watch() -> None:
        answers = ranks.stage("connected", is_connected.wait(CONNECT_SECONDS))
        hanging = {host for host, is_done in zip(ranks.hosts, answers, strict=True) if not is_done}
        if hanging:
            where = "every node" if hanging == set(ranks.hosts) else name_all(hanging)
            ranks.leave(
                f"no process group after {CONNECT_SECONDS:.0f} s, it hangs on {where}; look at MASTER_ADDR "
                "and NCCL_SOCKET_IFNAME in env.sh, and at firewalls"
            )

    watcher = threading.Thread(target=watch, name="connecting", daemon=True)
    watcher.start()
    yield
    is_connected.set()
    watcher.join()


def preflight(fabric: Fabric, stores: Sequence[PackedStore], out_dir: Path) -> list[str]:
    """Look at every rank's device and folders, then reduce within each node and between them. Collective.

    Ends the process with exit code 87, after one line that names the nodes at fault, if a rank does not
    answer, if it sees other data or another `out_dir` than rank 0, or if an all-reduce hangs or is wrong.

    Args:
        stores: As this rank opened them.
        out_dir: Exists by now.

    Returns:
        Lines to show, on every rank the same: one for each rank and one on the network.
    """
    report = _report(fabric.device, stores)
    if fabric.world_size == 1:
        return [_line(0, report)]
    store = dist.PrefixStore("preflight", dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]
    call = RollCall(store, fabric.global_rank, ["an unknown node"] * fabric.world_size)
    reports = call.stage("devices", report)
    call.hosts = [entry["host"] for entry in reports]
    _check_folders(call, fabric.global_rank, reports, out_dir)
    network = check_network(call, fabric)
    return [*(_line(rank, entry) for rank, entry in enumerate(reports)), network]


def _report(device: torch.device, stores: Sequence[PackedStore]) -> dict[str, Any]:
    """What one rank has to say about itself; memory in GiB."""
    driver_file = Path("/proc/driver/nvidia/version")
    driver = "none"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        free = float(torch.cuda.mem_get_info(device)[0])
        if driver_file.is_file() and (found := re.search(r"\s(\d+\.[\d.]+)\s", driver_file.read_text())):
            driver = found[1]
    else:
        name = f"CPU, {torch.get_num_threads()} thread(s)"
        free = _available_memory()
    return {
        "host": os.environ.get("SLURMD_NODENAME", gethostname()),
        "device": name,
        "driver": driver,
        "free": free / 2**30,
        "stores": {str(packed.store.path): packed.fingerprint for packed in stores},
    }


def _available_memory() -> float:
    """Bytes of the host that a new process could have; NaN where the system does not say."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.is_file() else "")
    return 1024.0 * int(found[1]) if found else math.nan


def _line(rank: int, report: dict[str, Any]) -> str:
    return (
        f"rank {rank} on {report['host']}: {report['device']}, driver {report['driver']}, "
        f"{report['free']:.1f} GiB free, {len(report['stores'])} store(s)"
    )


def _check_folders(call: RollCall, rank: int, reports: list[dict[str, Any]], out_dir: Path) -> None:
    """All ranks must see the same stores, and in `out_dir` a file that rank 0 has just put there."""
    beacon = out_dir / f".preflight-{os.environ.get('SLURM_JOB_ID', '')}-{os.getpid()}"
    if rank == 0:
        beacon.touch()
    beacon = out_dir / call.stage("beacon", beacon.name)[0]
    seen = call.stage("folder", beacon.exists())
    if rank == 0:
        beacon.unlink()
    if blind := {host for host, sees in zip(call.hosts, seen, strict=True) if not sees}:
        call.leave(f"--out_dir {out_dir} is another folder on {name_all(blind)} than on {call.hosts[0]}")
    for path, fingerprint in reports[0]["stores"].items():
        if other := {entry["host"] for entry in reports if entry["stores"].get(path) != fingerprint}:
            call.leave(f"{path} holds other data on {name_all(other)} than on {call.hosts[0]}")
