"""How a training is started wrongly under SLURM or torchrun, and what to do about each."""

import re
from collections.abc import Mapping
from socket import gethostname

UNDETECTED = ("bash", "interactive")  # jobs of these names are not taken for SLURM's by Lightning


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
            "would wait for the others for ever: write `srun python ...`"
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
