"""Ends the processes of a job together when one hangs, has met bad input, or is asked to stop before a step.

Each rank has a thread that looks at clocks, and one that publishes a beat and the rank's wish to end, if any,
in the store that the ranks share. Rank 0 reads them, decides, says why, and every rank leaves with the same
exit code. This works from the first second to the last: it needs no process group, and the main thread may be
inside a collective that waits for a rank that is gone.
"""

import contextlib
import faulthandler
import json
import math
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple, NoReturn

from lit_gpt.cli import EXIT_BAD_INPUT, OptionsT, print_error, run_command
from pretrain.launch.phases import Progress
from pretrain.launch.processes import Launch
from pretrain.launch.stop import StopRequest

EXIT_HANG = 86
BEAT_SECONDS = 2.0
SILENCE_LIMIT = 45.0
GATHER_SECONDS = 60.0  # for an end that all ranks share: the slowest may still be importing


class Ending(NamedTuple):
    """How all ranks are to end."""

    exit_code: int
    message: str

    @property
    def urgency(self) -> tuple[bool, int]:
        """Bad input goes before all else, as it would end the next start, too; a stop comes last."""
        return self.exit_code == EXIT_BAD_INPUT, self.exit_code


class Watchdog:
    """The threads, and what they are told.

    Args:
        stop_request: Obeyed by ending all ranks while there is nothing to save; later the trainer obeys it.
    """

    def __init__(self, stop_request: StopRequest) -> None:
        self.stop_request = stop_request
        self.launch = Launch.of(os.environ)
        self.launch.end_with_launcher()
        self.before_stopping: Callable[[], None] = lambda: None
        """Called on rank 0 before a stop ends all ranks."""
        self._progress = Progress()
        self._reports: Path | None = None
        self._ending: Ending | None = None
        self._wake = threading.Event()
        self._exchanged = threading.Event()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._last_exchange = math.inf
        self._store: Any = None
        self._seen: dict[int, tuple[bytes, float]] = {}

    # ---- what the main thread says

    def run(self, options_class: type[OptionsT], main: Callable[[OptionsT], None]) -> NoReturn:
        """`lit_gpt.cli.run_command`, with every rank ended by bad input or a crash of one."""
        try:
            run_command(options_class, main, report=self.refuse)
        except Exception as error:
            self._crash(error)

    def start(self, patience: timedelta) -> None:
        """Begin to watch; with several ranks, once their store is reached.

        Raises:
            DistError: rank 0 is not there.
        """
        if self._threads:
            return
        if self.launch.world_size > 1:
            self._store = self.own_store("watchdog", patience)
            self._last_exchange = time.monotonic()
            self._threads.append(threading.Thread(target=self._exchange_beats, name="beats", daemon=True))
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        for thread in self._threads:
            thread.start()

    def own_store(self, name: str, patience: timedelta = timedelta(minutes=5)) -> Any:
        """A new connection to the store that the ranks share, for keys of one purpose and for one thread: one
        that another waits on answers nobody else."""
        import torch.distributed as dist

        shared = self.launch.connect(patience, self._leave_if_stopped)
        return dist.PrefixStore(name, shared.clone())  # type: ignore[attr-defined]

    def limit(self, minutes: float, out_dir: Path) -> None:
        """Set `--watchdog_minutes`, 0 for no limit, and where `hang-rank00000.txt` goes, with all stacks."""
        self._progress.minutes = minutes or math.inf
        self._reports = out_dir

    def phase(self, name: str) -> None:
        """What this rank does from now on, one of `phases.PHASES`."""
        self._progress.enter(name)

    def beat(self, where: str) -> None:
        """Progress was made within the phase; `where` says what was done last, for the message."""
        if (warning := self._progress.beat(where)) and self.launch.rank == 0:
            print(f"warning: {warning}", file=sys.stderr, flush=True)

    def refuse(self, message: str) -> None:
        """End every rank with exit code 2, for bad input that this rank has met; rank 0 says it.

        Returns only where this is the only process, after saying it.
        """
        if self.launch.world_size == 1:
            print_error(message)
            return
        rank = self.launch.rank
        if rank > 0 and f"(rank {rank} on " not in message:
            message += f" (rank {rank} on {gethostname()})"
        self.end(EXIT_BAD_INPUT, message)

    def end(self, exit_code: int, message: str) -> NoReturn:
        """End every rank with this code. Any may ask, at any time."""
        ending = Ending(exit_code, message)
        with contextlib.suppress(Exception):  # whoever cannot reach the others leaves alone
            self.start(timedelta(seconds=GATHER_SECONDS))
            self._ask(ending)
            time.sleep(2 * GATHER_SECONDS)
        self._leave(ending)

    def _crash(self, error: Exception) -> NoReturn:
        """Print the traceback of an unexpected exception and end every rank with exit code 1."""
        # A rank that obeys a verdict breaks the others' collectives. The verdict is in the store by then: an
        # exchange that begins now finds it and leaves. The one under way may have begun before.
        alone = self.launch.world_size == 1 or self._closed.is_set()
        for _ in range(2 if self._store is not None and not alone else 0):
            self._exchanged.clear()
            self._wake.set()
            self._exchanged.wait(GATHER_SECONDS)
        traceback.print_exception(error)
        if alone:
            sys.exit(1)
        first_line = next(iter(str(error).splitlines()), "")
        self.end(1, f"{self._me}: {type(error).__name__}: {first_line}")

    def close(self) -> None:
        """Stop watching: the run is over on this rank. Rank 0 waits for the processes that it started."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2 * BEAT_SECONDS)
        for other in self.launch.others:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends with this process then
                other.wait(GATHER_SECONDS)

    # ---- the thread that looks at clocks, so that nothing can block it

    def _watch(self) -> None:
        ended_before: set[int] = set()
        while not self._closed.wait(BEAT_SECONDS):
            if time.monotonic() - self._last_exchange > SILENCE_LIMIT:
                lost = f"rank 0 has not answered for {SILENCE_LIMIT:.0f} s (frozen or dead)"
                self._leave(self._ending or Ending(EXIT_HANG, lost))
            if self.launch.orphaned:
                self._leave(Ending(1, f"the launcher of {self._me} has ended"))
            if (overdue := self._progress.overdue) is not None:
                self._ask(Ending(EXIT_HANG, f"{self._me}: {overdue}"))
            if (stopped := self._stopped) is not None:
                self._ask(stopped)
            # Seen twice: one that ends for a reason that this rank shares leaves it the time to say so.
            ended = {n for n, other in enumerate(self.launch.others, 1) if other.poll() not in (None, 0)}
            for number in ended & ended_before:
                code = self.launch.others[number - 1].returncode
                self._ask(
                    Ending(max(code, 1), f"rank {self.launch.rank + number} has ended with code {code}")
                )
            ended_before = ended

    @property
    def _stopped(self) -> Ending | None:
        """How all ranks are to end if this one was asked to stop while there is nothing to save."""
        if not (self.stop_request.is_set and self._progress.saves_nothing):
            return None
        why = f"{self.stop_request.reason}, {self._progress.phase}"
        return Ending(0, f"stopped before a step was done ({why}); go on with --resume auto")

    def _leave_if_stopped(self) -> None:
        if (stopped := self._stopped) is not None:
            self._leave(stopped)

    def _ask(self, ending: Ending) -> None:
        """Have all ranks end, this one with them; the first wish of a rank counts."""
        self._ending = self._ending or ending
        self._wake.set()
        if self._store is None:
            self._leave(self._ending)

    # ---- the thread that speaks with the other ranks

    def _exchange_beats(self) -> None:
        import torch.distributed as dist

        beats = 0
        while not self._closed.is_set():
            beats += 1
            try:
                self._exchange(beats)
            except dist.DistError as error:  # its server is gone: without it nothing can go on
                if self._closed.wait(BEAT_SECONDS):
                    break
                gone = f"rank 0 does not answer any more ({type(error).__name__})"
                self._leave(self._ending or Ending(EXIT_HANG, gone))
            self._last_exchange = time.monotonic()
            self._exchanged.set()
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
        with contextlib.suppress(dist.DistError):  # rank 0 has left: nobody needs the beat
            self._store.set(f"beat/{self.launch.rank}", "left")

    def _exchange(self, beats: int) -> None:
        rank, store = self.launch.rank, self._store
        store.set(f"beat/{rank}", str(beats))
        if self._ending is not None:
            store.set(f"ending/{rank}", json.dumps(self._ending))
            store.set("endings", "some")
        if rank == 0:
            self._decide()
        elif store.check(["verdict"]):
            verdict = Ending(*json.loads(store.get("verdict")))
            with contextlib.suppress(Exception):  # rank 0 leaves as soon as it counts this, maybe unanswered
                store.add("obeyed", 1)
            self._leave(verdict, said=True)
        # Rank 0 watches everybody, everybody watches rank 0: W messages a beat instead of W * W.
        for other in range(1, self.launch.world_size) if rank == 0 else range(1):
            if self._silent(other):
                silent = (
                    f"{self.launch.name(other)} has been silent for {SILENCE_LIMIT:.0f} s (frozen or dead)"
                )
                self._ask(Ending(EXIT_HANG, silent))

    def _decide(self) -> None:
        """Rank 0: if a rank wants to end, all do."""
        store, ranks = self._store, range(self.launch.world_size)
        if not store.check(["endings"]):
            return
        keys = [f"ending/{rank}" for rank in ranks if store.check([f"ending/{rank}"])]
        verdict = max((Ending(*json.loads(store.get(key))) for key in keys), key=lambda wish: wish.urgency)
        self._show(verdict)
        store.set("verdict", json.dumps(verdict))
        # The store may be this process's: it must not go before the others have read it.
        deadline = time.monotonic() + (4 * BEAT_SECONDS if verdict.exit_code == EXIT_HANG else GATHER_SECONDS)
        while store.add("obeyed", 0) < len(ranks) - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        for other in self.launch.others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(max(deadline - time.monotonic(), 0))
        self._leave(verdict, said=True)

    def _silent(self, rank: int) -> bool:
        key = f"beat/{rank}"
        value = (
            self._store.get(key) if self._store.check([key]) else b"left"
        )  # not come: the roll call names it
        now = time.monotonic()
        if value == b"left":
            return False
        if rank not in self._seen or self._seen[rank][0] != value:
            self._seen[rank] = (value, now)
        return now - self._seen[rank][1] > SILENCE_LIMIT

    # ---- leaving

    @property
    def _me(self) -> str:
        return f"rank {self.launch.rank} on {gethostname()}"

    def _show(self, ending: Ending) -> None:
        if ending.exit_code == 0:
            with contextlib.suppress(OSError):  # a full disk keeps no rank from ending
                self.before_stopping()
            print(ending.message, flush=True)
        else:
            print_error(ending.message)

    def _leave(self, ending: Ending, said: bool = False) -> NoReturn:
        if not said:
            self._show(ending)
        if ending.exit_code == EXIT_HANG:
            self._dump_stacks(ending.message)
        sys.stdout.flush()
        os._exit(ending.exit_code)

    def _dump_stacks(self, message: str) -> None:
        """What every thread is doing; into the run's folder if there is one and room in it."""
        name = f"hang-rank{self.launch.rank:05d}.txt"
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            file = sys.stderr
            if self._reports is not None:
                with contextlib.suppress(OSError):
                    file = stack.enter_context((self._reports / name).open("w"))
            file.write(f"{self._me}: {message}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
