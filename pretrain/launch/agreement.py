"""All ranks end with one exit code and one message, agreed on through the key-value store that they share.

Each rank publishes a beat, and its request to end if it has one. Rank 0 reads them, decides, prints why, and
publishes the verdict; every rank obeys it. This needs no process group, and the main thread may be inside a
collective that waits for a rank that is gone.
"""

import contextlib
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from lit_gpt.cli import EXIT_BAD_INPUT
from pretrain.launch.processes import Launch

EXIT_HANG = 86
BEAT_SECONDS = 2.0
SILENCE_LIMIT = 45.0
GATHER_SECONDS = 60.0  # for bad input or a stop: the slowest rank may still be importing


class Ending(NamedTuple):
    exit_code: int
    message: str

    @property
    def urgency(self) -> tuple[bool, int]:
        """Bad input first, since it would end the next start too; a stop last."""
        return self.exit_code == EXIT_BAD_INPUT, self.exit_code


class EndAgreement:
    """One rank's part in it: a thread that talks to the other ranks every BEAT_SECONDS.

    Args:
        launch: This process among those of its job.
        store: A connection of its own.
        show: Prints how all end; called on rank 0.
        leave: Ends this process; with False, without printing the message.
    """

    def __init__(
        self,
        launch: Launch,
        store: Any,
        show: Callable[[Ending], None],
        leave: Callable[[Ending, bool], NoReturn],
    ) -> None:
        self._launch = launch
        self._store = store
        self._show = show
        self._leave = leave
        self._request: Ending | None = None
        self._wake = threading.Event()
        self._exchanged = threading.Event()
        self._closed = threading.Event()
        self._last_exchange = time.monotonic()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)
        self._thread.start()

    # ---- for other threads

    def request(self, ending: Ending) -> None:
        """Have all ranks end, this one with them. The first request of a rank counts."""
        self._request = self._request or ending
        self._wake.set()

    def leave_if_cut_off(self) -> None:
        """End this process if the store does not answer: the thread may hang in it."""
        if time.monotonic() - self._last_exchange > SILENCE_LIMIT:
            self._give_up(f"rank 0 has not answered for {SILENCE_LIMIT:.0f} s (frozen or dead)")

    def complete_exchange(self) -> None:
        """Wait for an exchange that begins now, which ends this process if there is a verdict."""
        for _ in range(2):  # the exchange under way may have begun before
            self._exchanged.clear()
            self._wake.set()
            self._exchanged.wait(GATHER_SECONDS)

    def close(self) -> None:
        """Tell the others that this rank is done."""
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)

    # ---- the thread

    def _run(self) -> None:
        import torch.distributed as dist

        beats = 0
        while not self._closed.is_set():
            beats += 1
            try:
                self._exchange(beats)
            except dist.DistError as error:  # its server is gone: without it nothing can continue
                if self._closed.wait(BEAT_SECONDS):
                    break
                self._give_up(f"rank 0 does not answer any more ({type(error).__name__})")
            self._last_exchange = time.monotonic()
            self._exchanged.set()
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
        with contextlib.suppress(dist.DistError):  # rank 0 has left: nobody needs the beat
            self._store.set(f"beat/{self._launch.rank}", "left")

    def _give_up(self, reason: str) -> NoReturn:
        self._leave(self._request or Ending(EXIT_HANG, reason), True)

    def _exchange(self, beats: int) -> None:
        rank, store = self._launch.rank, self._store
        store.set(f"beat/{rank}", str(beats))
        if self._request is not None:
            store.set(f"ending/{rank}", json.dumps(self._request))
            store.set("endings", "some")
        if rank == 0:
            self._decide()
        elif store.check(["verdict"]):
            verdict = Ending(*json.loads(store.get("verdict")))
            with contextlib.suppress(Exception):  # rank 0 leaves as soon as it counts this, maybe unanswered
                store.add("obeyed", 1)
            self._leave(verdict, False)
        # Rank 0 watches everybody, everybody watches rank 0: W messages a beat instead of W * W.
        for other in range(1, self._launch.world_size) if rank == 0 else range(1):
            if self._is_silent(other):
                name = self._launch.name(other)
                message = f"{name} has been silent for {SILENCE_LIMIT:.0f} s (frozen or dead)"
                self.request(Ending(EXIT_HANG, message))

    def _decide(self) -> None:
        """Rank 0: if a rank wants to end, all do."""
        store, ranks = self._store, range(self._launch.world_size)
        if not store.check(["endings"]):
            return
        keys = [f"ending/{rank}" for rank in ranks if store.check([f"ending/{rank}"])]
        verdict = max((Ending(*json.loads(store.get(key))) for key in keys), key=lambda wish: wish.urgency)
        self._show(verdict)
        store.set("verdict", json.dumps(verdict))
        self._last_exchange = math.inf  # from now on this thread waits for the others, not for the store
        # The store may be this process's: it must not go before the others have read it. Dead ones never do.
        shared = verdict.exit_code in (0, EXIT_BAD_INPUT)
        deadline = time.monotonic() + (GATHER_SECONDS if shared else 4 * BEAT_SECONDS)
        while store.add("obeyed", 0) < len(ranks) - 1 and time.monotonic() < deadline:
            if self._launch.others_have_ended:
                break
            time.sleep(0.05)
        for other in self._launch.others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(max(deadline - time.monotonic(), 0))
        self._leave(verdict, False)

    def _is_silent(self, rank: int) -> bool:
        key = f"beat/{rank}"
        if not self._store.check([key]):
            return False  # not there yet: the roll call names it
        value, now = self._store.get(key), time.monotonic()
        if value == b"left":
            return False
        if rank not in self._seen or self._seen[rank][0] != value:
            self._seen[rank] = (value, now)
        return now - self._seen[rank][1] > SILENCE_LIMIT
