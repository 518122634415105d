"""A function that does what its argument says; its module imports little, as a new process needs it."""

import os
import signal
import time
from pathlib import Path


def obey(order: str) -> str | None:
    if order == "hang":
        time.sleep(1000)
    while order == "loop":
        pass
    if order == "eat":
        return "a" * (3 << 30)
    if order == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == "crash once" and not Path("crashed").exists():
        Path("crashed").touch()
        os._exit(1)
    if order == "recurse":
        return obey(order)
    return None if order == "nothing" else f"did {order} in {os.getpid()}"


def cannot_start(order: str) -> None:
    raise ImportError("libxml2.so.16: no such\nfile")


def dies_at_start(order: str) -> None:
    os._exit(1)
