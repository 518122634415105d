"""Ends a process that hangs, and names the rank that made it hang.

A thread of each rank publishes a beat in the process group's key-value store; rank 0 watches the beats of
all. A rank that froze or died is named within SILENCE_LIMIT seconds, instead of every other rank waiting
in a collective until its timeout.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

EXIT_HANG = 86
BEAT_SECONDS = 2.0
SILENCE_LIMIT = 45.0


class Watchdog:
    """Leaves the process with exit code 86 when a rank falls silent or no step ends within the limit.

    Args:
        out_dir: Where `hang-rank00000.txt` with the stack of every thread goes.
        limit_seconds: Longest time between two calls of `beat`; 0 for no limit.
    """

    def __init__(self, out_dir: Path, rank: int, world_size: int, limit_seconds: float) -> None:
        self._path = out_dir / f"hang-rank{rank:05d}.txt"
        self._rank = rank
        self._world_size = world_size
        self._limit = limit_seconds or float("inf")
        self._last_progress = time.monotonic()
        self._where = "start"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        self._last_exchange = time.monotonic()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._store = None
        if dist.is_initialized() and world_size > 1:
            # A connection of its own: the training's may be blocked in a wait.
            self._store = dist.PrefixStore("watchdog", dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]
            self._threads.append(threading.Thread(target=self._exchange_beats, name="beats", daemon=True))

    def start(self) -> "Watchdog":
        """Begin to watch."""
        for thread in self._threads:
            thread.start()
        return self

    def beat(self, where: str) -> None:
        """Progress was made; `where` says what was done last, for the message."""
        self._last_progress = time.monotonic()
        self._where = where

    def lift_limit(self) -> None:
        """Wait without limit from now on; ranks that fall silent are still found."""
        self._limit = float("inf")

    def close(self) -> None:
        """Stop watching: the run is over on this rank."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * BEAT_SECONDS)

    def _watch(self) -> None:
        """Looks at clocks only, so that nothing can block it."""
        while not self._stop.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - self._last_progress > self._limit:
                self._leave(f"no progress for {now - self._last_progress:.0f} s after {self._where}")
            if self._store is not None and now - self._last_exchange > SILENCE_LIMIT:
                self._leave(f"rank 0 has not answered for {SILENCE_LIMIT:.0f} s (frozen or dead)")

    def _exchange_beats(self) -> None:
        beats = 0
        while not self._stop.wait(BEAT_SECONDS):
            beats += 1
            try:
                self._exchange(beats)
            except dist.DistError as error:  # the store lives in rank 0: without it nothing can go on
                if not self._stop.wait(BEAT_SECONDS):
                    self._leave(f"rank 0 does not answer any more ({type(error).__name__})")
            self._last_exchange = time.monotonic()
        self._publish("left")

    def _publish(self, value: str) -> None:
        assert self._store is not None
        with contextlib.suppress(dist.DistError):  # rank 0 left before us: nobody needs the beat
            self._store.set(f"beat/{self._rank}", value)

    def _exchange(self, beats: int) -> None:
        assert self._store is not None
        self._store.set(f"beat/{self._rank}", str(beats))
        verdict = self._store.get("verdict") if self._store.check(["verdict"]) else b""
        if verdict:
            self._leave(verdict.decode())
        # Rank 0 watches everybody, everybody watches rank 0: W messages a beat instead of W * W.
        watched = range(1, self._world_size) if self._rank == 0 else range(1)
        for rank in watched:
            if self._silent(rank):
                message = f"rank {rank} has been silent for {SILENCE_LIMIT:.0f} s (frozen or dead)"
                if self._rank == 0:
                    self._store.set("verdict", message)
                    time.sleep(2 * BEAT_SECONDS)  # so that the others can read it
                self._leave(message)

    def _silent(self, rank: int) -> bool:
        assert self._store is not None
        key = f"beat/{rank}"
        value = self._store.get(key) if self._store.check([key]) else b""
        now = time.monotonic()
        if value == b"left":
            return False
        if rank not in self._seen or self._seen[rank][0] != value:
            self._seen[rank] = (value, now)
        return now - self._seen[rank][1] > SILENCE_LIMIT

    def _leave(self, reason: str) -> None:
        message = f"rank {self._rank} stops: {reason}; stacks in {self._path}"
        print(message, file=sys.stderr, flush=True)
        with self._path.open("w") as file:
            file.write(message + "\n")
            faulthandler.dump_traceback(file, all_threads=True)
        os._exit(EXIT_HANG)
