"""Ports for processes that are about to listen."""

import random
import socket
from contextlib import ExitStack, suppress

PORTS = range(25_000, 32_768)
"""Below Linux's ephemeral ports: an outgoing connection never takes one between the choice and the listening.
Above those that Lightning gives SLURM jobs."""


def free_ports(count: int) -> list[int]:
    """That many ports on loopback that nothing listens on, drawn at random."""
    system = random.SystemRandom()  # two processes with one seed would draw the same
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = system.choice(PORTS)
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports
