"""Pre-flight checks of the launch, devices, shared folders and interconnect; a node at fault is named.

    ranks = join(options, watchdog)            launch mistakes; ranks that are missing
    connect(ranks, device_type)                ranks that cannot make the process group
    preflight(ranks, fabric, stores, out_dir)  devices, folders, all-reduce within and between nodes

Without them a wrong launch or a broken node shows as a job that hangs until its time limit.
"""

import atexit
import math
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from lit_gpt.cli import InputError
from lit_gpt.rows.packed_store import PackedStore
from pretrain.launch.processes import UNDETECTED, is_torchrun
from pretrain.launch.roll_call import EXIT_UNSOUND, RollCall, check_network, name_all
from pretrain.launch.watchdog import Watchdog
from pretrain.options import TrainOptions
from pretrain.parallel import PROCESS_GROUP_TIMEOUT, gpus_unseen, resolve_accelerator

LATE_START_SECONDS = 300.0  # importing from a slow file system may take some ranks long
READING_SECONDS = 86_400.0  # so may packing a large store; a rank that dies meanwhile is noticed at once
CONNECT_SECONDS = {"cuda": 300.0, "cpu": 45.0}  # on CUDA libraries and contexts come first


def join(options: TrainOptions, watchdog: Watchdog) -> RollCall | None:
    """Refuse a launch that would hang or train several times over; start, or wait for, every rank.

    To be called on every rank before anything slow; from now on the ranks end together. Ranks that are
    missing are named within a minute; if they have not come after LATE_START_SECONDS, all end with code 87.

    Returns:
        What `connect` and `preflight` take; None for a single process.

    Raises:
        InputError: a launch mistake; one line that says the fix.
    """
    launch = watchdog.launch
    visible_gpus = 0 if options.accelerator == "cpu" else torch.cuda.device_count()
    if mistake := launch_mistake(options.devices, options.num_nodes, os.environ, visible_gpus):
        raise InputError(mistake)
    device_type = resolve_accelerator(options.accelerator)
    if (options.accelerator, device_type) == ("auto", "cpu") and (unseen := gpus_unseen()):
        print(f"warning: training on the CPU: torch sees no GPU{unseen}", file=sys.stderr, flush=True)
    if options.world_size > 1 and launch.world_size == 1:
        launch.start_others(options.devices, options.num_nodes)
    try:
        watchdog.start(timedelta(seconds=LATE_START_SECONDS))
    except dist.DistError as error:
        watchdog.end(
            EXIT_UNSOUND,
            f"rank {launch.rank} on {gethostname()} does not reach rank 0 "
            f"({' '.join(str(error).split())[:160]}): is its node up, and MASTER_ADDR its address?",
        )
    if launch.world_size == 1:
        return None
    call = RollCall(watchdog)
    host = os.environ.get("SLURMD_NODENAME", gethostname())
    launch.hosts = call.stage("start", host, patience=LATE_START_SECONDS)
    return call


def launch_mistake(
    devices: int, num_nodes: int, environment: Mapping[str, str], visible_gpus: int
) -> str | None:
    """What is wrong with how this process was started, and the fix, in one line; None if nothing is.

    Args:
        environment: Of the process, with the variables of SLURM or torchrun.
        visible_gpus: CUDA devices that the process sees.
    """
    world_size = devices * num_nodes
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if 0 < visible_gpus < devices:
        return (
            f"{gethostname()} shows this process {visible_gpus} GPU(s), but --devices is {devices}: give "
            f"SLURM --gpus-per-node={devices}, without --gpus-per-task and --gpu-bind"
        )
    if is_torchrun(environment):
        on_node, in_all = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        if (on_node, in_all) != (devices, world_size):
            return (
                f"torchrun started {on_node} processes on this node, {in_all} in all, but --devices "
                f"{devices} and --num_nodes {num_nodes} mean {world_size}: make them agree"
            )
        return None
    if "SLURM_JOB_ID" not in environment or world_size == tasks == 1:
        return None
    if environment.get("SLURM_JOB_NAME") in UNDETECTED:
        return (
            f"the job's name {environment['SLURM_JOB_NAME']!r} switches off the detection of SLURM, and "
            "every task would train alone: give sbatch or srun another --job-name"
        )
    if "SLURM_STEP_ID" not in environment:
        return (
            f"the job is for {max(tasks, world_size)} processes, but this one was started without srun and "
            "would wait for the others indefinitely: write `srun python ...`"
        )
    if "SLURM_NTASKS_PER_NODE" not in environment:
        return f"SLURM was given --ntasks={tasks} alone: give --nodes and --ntasks-per-node"
    per_node, nodes = int(environment["SLURM_NTASKS_PER_NODE"]), int(environment["SLURM_NNODES"])
    if (per_node, nodes) != (devices, num_nodes):
        return (
            f"SLURM started {per_node} tasks on each of {nodes} nodes, but --devices is {devices} and "
            f"--num_nodes {num_nodes}: every device needs a task of its own, so give --nodes={num_nodes} "
            f"--ntasks-per-node={devices}, or change the options"
        )
    return None


def connect(call: RollCall | None, device_type: str) -> None:
    """Make the process group. Ranks may come late, when reading data took them long.

    No rank is bound to a device: so NCCL connects the ranks of a group when they first reduce in it, and the
    pre-flight sees it fail within a node, or between two, before all try.

    Ends all ranks with exit code 87 if it hangs, after one line that names the nodes where it does.
    """
    if call is None:
        return
    call.stage("connect", None, patience=READING_SECONDS)
    is_connected = threading.Event()
    limit = CONNECT_SECONDS[device_type]

    def watch() -> None:
        answers = call.stage("connected", is_connected.wait(limit), patience=limit)
        if hanging := {host for host, is_done in zip(call.hosts, answers, strict=True) if not is_done}:
            where = "every node" if hanging == set(call.hosts) else name_all(hanging)
            call.leave(
                f"no process group after {limit:.0f} s, it hangs on {where}; look at MASTER_ADDR "
                "and NCCL_SOCKET_IFNAME in env.sh, and at firewalls"
            )

    watcher = threading.Thread(target=watch, name="connecting", daemon=True)
    watcher.start()
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=call.group_store(),
        rank=call.launch.rank,
        world_size=call.launch.world_size,
        timeout=PROCESS_GROUP_TIMEOUT,
    )
    is_connected.set()
    watcher.join()
    if device_type == "cuda":
        atexit.register(dist.destroy_process_group)  # torch complains of one that is left


def preflight(
    call: RollCall | None, fabric: Fabric, stores: Sequence[PackedStore], out_dir: Path
) -> list[str]:
    """Look at every rank's device and folders, then reduce within each node and between them. Collective.

    Ends all ranks, after one line that names the nodes at fault: with exit code 87 if a rank does not answer
    or an all-reduce hangs or is wrong, with 2 if a rank sees other data or another `out_dir` than rank 0.

    Args:
        stores: As this rank opened them.
        out_dir: Exists by now.

    Returns:
        Lines to show, on every rank the same: one for each rank and one on the network.
    """
    report = _report(fabric.device, stores)
    if call is None:
        return [_line(gethostname(), 0, report)]
    reports = call.stage("devices", report)
    _check_folders(call, reports, out_dir)
    network = check_network(call, fabric)
    return [*(_line(call.hosts[rank], rank, entry) for rank, entry in enumerate(reports)), network]


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
        "device": name,
        "driver": driver,
        "free": free / 2**30,
        "stores": {packed.name: packed.fingerprint for packed in stores},
    }


def _available_memory() -> float:
    """Bytes of the host that a new process could have; NaN where the system does not say."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.is_file() else "")
    return 1024.0 * int(found[1]) if found else math.nan


def _line(host: str, rank: int, report: dict[str, Any]) -> str:
    return (
        f"rank {rank} on {host}: {report['device']}, driver {report['driver']}, "
        f"{report['free']:.1f} GiB free, {len(report['stores'])} store(s)"
    )


def _check_folders(call: RollCall, reports: list[dict[str, Any]], out_dir: Path) -> None:
    """All ranks must see the same stores, and in `out_dir` a file that rank 0 has just put there."""
    rank = call.launch.rank
    beacon = out_dir / f".preflight-{os.environ.get('SLURM_JOB_ID', '')}-{os.getpid()}"
    if rank == 0:
        beacon.touch()
    beacon = out_dir / call.stage("beacon", beacon.name)[0]
    seen = call.stage("folder", beacon.exists())
    if rank == 0:
        beacon.unlink()
    if blind := {host for host, sees in zip(call.hosts, seen, strict=True) if not sees}:
        call.refuse(f"--out_dir {out_dir} is another folder on {name_all(blind)} than on {call.hosts[0]}")
    for path, fingerprint in reports[0]["stores"].items():
        held = zip(call.hosts, reports, strict=True)
        if other := {host for host, report in held if report["stores"].get(path) != fingerprint}:
            call.refuse(f"{path} holds other data on {name_all(other)} than on {call.hosts[0]}")
