"""Ends the processes of a job together: when one hangs, crashes, has bad input, or is to stop before a step.

It works from the first second to the last. A thread of each rank looks at clocks, so that nothing can block
it; what it finds, and what the main thread reports, ends all ranks by agreement.
"""

import contextlib
import faulthandler
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
from typing import Any, NoReturn

from lit_gpt.cli import EXIT_BAD_INPUT, OptionsT, print_error, run_command
from pretrain.launch.agreement import BEAT_SECONDS, EXIT_HANG, GATHER_SECONDS, EndAgreement, Ending
from pretrain.launch.processes import Launch
from pretrain.launch.stop import Progress, StopRequest


class Watchdog:
    """The thread, and what it is told.

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
        self._agreement: EndAgreement | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

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
        if self._thread is not None:
            return
        if self.launch.world_size > 1:
            store = self.own_store("watchdog", patience)
            self._agreement = EndAgreement(self.launch, store, self._show, self._leave)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def own_store(self, name: str, patience: timedelta = timedelta(minutes=5)) -> Any:
        """A new connection to the store that the ranks share, for one purpose and one thread: a connection on
        which a thread waits answers no other."""
        import torch.distributed as dist

        shared = self.launch.connect(patience, self._leave_if_stopped)
        return dist.PrefixStore(name, shared.clone())  # type: ignore[attr-defined]

    def limit(self, minutes: float, out_dir: Path) -> None:
        """Set `--watchdog_minutes`, 0 for no limit, and where `hang-rank00000.txt` goes, with all stacks."""
        self._progress.minutes = minutes or math.inf
        self._reports = out_dir

    def phase(self, name: str) -> None:
        """What this rank does from now on, one of `stop.PHASES`."""
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
        with contextlib.suppress(Exception):  # a rank that cannot reach the others leaves alone
            self.start(timedelta(seconds=GATHER_SECONDS))
            self._request(ending)
            time.sleep(2 * GATHER_SECONDS)
        self._leave(ending)

    def close(self) -> None:
        """Stop watching: the run is over on this rank. Rank 0 waits for the processes that it started."""
        self._closed.set()
        if self._agreement is not None:
            self._agreement.close()
        if self._thread is not None:
            self._thread.join(timeout=2 * BEAT_SECONDS)
        for other in self.launch.others:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends with this process then
                other.wait(GATHER_SECONDS)

    def _crash(self, error: Exception) -> NoReturn:
        """Print the traceback of an unexpected exception and end every rank with exit code 1."""
        alone = self.launch.world_size == 1 or self._closed.is_set()
        if self._agreement is not None and not alone:
            # A rank that obeys a verdict breaks the others' collectives: they are to obey it too, silently.
            self._agreement.complete_exchange()
            # A rank that died breaks them as well: leave rank 0's thread the time to see and name it.
            time.sleep(3 * BEAT_SECONDS)
        traceback.print_exception(error)
        if alone:
            sys.exit(1)
        first_line = next(iter(str(error).splitlines()), "")
        self.end(1, f"{self._me}: {type(error).__name__}: {first_line}")

    # ---- the thread

    def _watch(self) -> None:
        ended_before: set[int] = set()
        while not self._closed.wait(BEAT_SECONDS):
            if self._agreement is not None:
                self._agreement.leave_if_cut_off()
            if self.launch.orphaned:
                self._leave(Ending(1, f"the launcher of {self._me} has ended"))
            if (overdue := self._progress.overdue) is not None:
                self._request(Ending(EXIT_HANG, f"{self._me}: {overdue}"))
            if (stopped := self._stopped) is not None:
                self._request(stopped)
            # Seen twice: one that ends for a reason that this rank shares leaves it the time to say so.
            ended = {n for n, other in enumerate(self.launch.others, 1) if other.poll() not in (None, 0)}
            for number in ended & ended_before:
                code = self.launch.others[number - 1].returncode
                message = f"rank {self.launch.rank + number} has ended with code {code}"
                self._request(Ending(max(code, 1), message))
            ended_before = ended

    @property
    def _stopped(self) -> Ending | None:
        """How all ranks are to end if this one was asked to stop while there is nothing to save."""
        if not (self.stop_request.is_set and self._progress.saves_nothing):
            return None
        why = f"{self.stop_request.reason}, {self._progress.phase}"
        return Ending(0, f"stopped before a step was done ({why}); continue with --resume auto")

    def _leave_if_stopped(self) -> None:
        if (stopped := self._stopped) is not None:
            self._leave(stopped)

    def _request(self, ending: Ending) -> None:
        """Have all ranks end, this one with them."""
        if self._agreement is None:
            self._leave(ending)
        self._agreement.request(ending)

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

    def _leave(self, ending: Ending, show: bool = True) -> NoReturn:
        if show:
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
