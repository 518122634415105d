"""A real SLURM cluster of several nodes on one Debian machine, for trying batch scripts.

    python tests/cluster/local_slurm.py start DIR     # installs the packages if they are missing, as root
    export SLURM_CONF=DIR/etc/slurm.conf              # what a shell then needs
    python tests/cluster/local_slurm.py stop DIR

munged, slurmctld and one slurmd a node, on loopback, without systemd, cgroups or a database. All of it lies
in DIR, but for one line in /etc/hosts, by which the nodes' names resolve; `stop` takes it out again.
Partition `main` is the default one; jobs of partition `high` preempt and requeue those of `main`.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.faults.ports import free_ports
from tests.cluster.debian_packages import apt, install_without_starting

DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random"]  # pass for the GPUs that scripts ask for
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

SLURM_CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
# Each daemon listens on its node's own address, which is loopback.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits (120 s unless told).
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_delay}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
EnforcePartLimits=ALL
MaxArraySize=1001
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait={kill_wait}
MinJobAge=3600
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class LocalSlurm:
    """The cluster whose files lie in `folder`."""

    folder: Path
    n_nodes: int = 2
    cpus: int = 32
    """CPUs a node pretends to have."""
    grace: int = 60
    """Seconds a preempted job of `main` keeps after its signal."""
    kill_wait: int = 30
    """Seconds between SIGTERM and SIGKILL at a time limit or scancel."""
    requeue_delay: int = 5
    """Seconds a requeued job waits."""
    nodes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.nodes = [f"local{number}" for number in range(1, self.n_nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment, without any other SLURM's settings, pointing at this cluster."""
        inherited = {k: v for k, v in os.environ.items() if not re.match(r"(SLURM|SBATCH|SALLOC|SRUN)_", k)}
        return inherited | {"SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    def run(self, *command: str, **options) -> str:
        """Run one of SLURM's commands; its standard output. CalledProcessError when it fails."""
        options = {"env": self.environment, "text": True, "capture_output": True, "timeout": 60} | options
        return subprocess.run(command, check=True, **options).stdout

    def start(self) -> None:
        """Install, configure, start, and return when every node is idle.

        Raises:
            RuntimeError: not root, no packages to be had, or a daemon that does not come up (with its log).
        """
        install()
        self._configure()
        munge = self.folder / "munge"
        self._daemon(
            "munged",
            "--force",
            f"--key-file={munge}/key",
            f"--socket={munge}/socket",
            f"--pid-file={self.folder}/run/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={munge}/seed",
        )
        self._daemon("slurmctld", "-i")
        for node in self.nodes:
            self._daemon("slurmd", "-N", node)
        deadline = time.monotonic() + 30
        while (
            self.run("sinfo", "--noheader", "-N", "-p", "main", "-o", "%t").split() != ["idle"] * self.n_nodes
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes do not come up:\n{self._logs()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Cancel all jobs, end every process of this cluster, and take its line out of /etc/hosts."""
        try:
            if self._pid("slurmctld") is not None:
                self._cancel_all()
        finally:
            for pid_file in sorted((self.folder / "run").glob("slurmd.*.pid")):
                self._end(pid_file.stem)
            for name in ("slurmctld", "munged"):
                self._end(name)
            change_hosts(lambda lines: [line for line in lines if str(self.folder) not in line])

    def submit(self, *arguments: str, **options) -> str:
        """Run sbatch; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, **options).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says about a job or an array's task, as a table."""
        fields = self.run("scontrol", "show", "job", "-o", job).splitlines()[0].split()
        return dict(entry.split("=", 1) for entry in fields if "=" in entry)

    def wait(self, job: str, seconds: float = 300) -> dict[str, str]:
        """What `job` says once it has ended for good. TimeoutError when it has not within `seconds`."""
        deadline = time.monotonic() + seconds
        while (now := self.job(job))["JobState"] not in ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {now['JobState']} after {seconds} s")
            time.sleep(0.2)
        return now

    def _configure(self) -> None:
        for name in ("etc", "log", "run", "state", "munge", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in (self.folder, *self.folder.iterdir()):
            path.chmod(0o755)  # munged refuses a socket that others cannot reach
        key = self.folder / "munge/key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        settings = {name: getattr(self, name) for name in ("folder", "grace", "kill_wait", "requeue_delay")}
        port, *node_ports = free_ports(1 + self.n_nodes)
        lines = [SLURM_CONF.format(host=host, port=port, **settings)]
        for node, node_port in zip(self.nodes, node_ports, strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={self.cpus} "
                f"Gres=gpu:{len(DEVICES)}\n"
            )
        (self.folder / "etc/slurm.conf").write_text("".join(lines))
        (self.folder / "etc/gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in DEVICES))
        line = f"127.0.0.1 {host} {' '.join(self.nodes)} # {self.folder}\n"
        change_hosts(lambda lines: [*lines, line])

    def _cancel_all(self) -> None:
        deadline = time.monotonic() + 2 * self.kill_wait
        while jobs := set(self.run("squeue", "--noheader", "-o", "%A").split()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"jobs {sorted(jobs)} do not end")
            for full_stop in (["--signal=KILL", "--full"], []):  # the processes, then the job itself
                subprocess.run(["scancel", *full_stop, *jobs], env=self.environment, capture_output=True)
            time.sleep(0.2)

    def _daemon(self, *command: str) -> None:
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]} does not start:\n{self._logs()}")

    def _logs(self) -> str:
        return "\n".join(
            f"{path}:\n{path.read_text()[-2000:]}" for path in sorted((self.folder / "log").glob("*"))
        )

    def _pid(self, name: str) -> int | None:
        """The daemon's process, if it is alive and still what its file says."""
        file = self.folder / f"run/{name}.pid"
        text = file.read_text().strip() if file.exists() else ""
        try:
            command = Path("/proc", text, "cmdline").read_bytes() if text else b""
        except OSError:  # it has just ended
            command = b""
        # The command line of a zombie is empty.
        return int(text) if name.split(".")[0].encode() in command else None

    def _end(self, name: str) -> None:
        if (pid := self._pid(name)) is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self._pid(name) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def install() -> None:
    """Install SLURM from Debian's packages where it is missing.

    Raises:
        RuntimeError: it cannot be installed or started here; the message says why.
    """
    if os.geteuid() != 0:
        raise RuntimeError("SLURM's daemons are started as root here, and this user is not root")
    if not all(shutil.which(command) for command in ("munged", "slurmctld", "slurmd", "sbatch")):
        apt("update")
        install_without_starting("munge", "slurmctld", "slurmd", "slurm-client")


def change_hosts(change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of /etc/hosts in place, one cluster at a time."""
    with Path("/etc/hosts").open("r+") as hosts:
        fcntl.flock(hosts, fcntl.LOCK_EX)
        lines = change(hosts.readlines())
        hosts.seek(0)
        hosts.truncate()
        hosts.writelines(lines)


def environment_of(process: Path) -> list[str]:
    """The environment a process (its folder in /proc) was started with; empty once it is gone."""
    try:
        return (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    cluster = LocalSlurm(arguments.folder)
    try:
        getattr(cluster, arguments.action)()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    if arguments.action == "start":
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")


if __name__ == "__main__":
    main()
