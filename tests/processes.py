"""Looking at processes that may end at any moment, also between two looks."""

import os
from pathlib import Path


def stat_of(pid: int | str) -> list[str]:
    """What /proc says of a process, from its state on; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    return stat_of(pid)[:1] not in ([], ["Z"], ["X"])


def cpu_seconds(pid: int) -> float:
    """The time that a living process has spent."""
    user, system = stat_of(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
