"""TensorBoard and Weights & Biases: shown while they work, and never a reason to stop."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.cli import InputError
from pretrain.monitor.save_errors import SaveErrors

CLOSE_SECONDS = 300.0


class Sink(Protocol):
    """Where figures are shown."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def open_boards(
    out_dir: Path, first_step: int, wandb_project: str | None, errors: SaveErrors
) -> "list[Board]":
    """TensorBoard, and Weights & Biases if a project is named.

    Raises:
        InputError: the package that the user asked for is missing.
    """
    boards = [Board("TensorBoard", errors, lambda: EventFile(out_dir / "tensorboard", first_step))]
    if wandb_project:
        try:
            import wandb
        except ImportError as error:
            raise InputError("--wandb_project needs the package wandb: pip install wandb") from error

        def start() -> Sink:
            return wandb.init(project=wandb_project, name=out_dir.name, dir=str(out_dir), resume="allow")

        boards.append(Board("Weights & Biases", errors, start))
    return boards


def close_boards(boards: Sequence["Board"], errors: SaveErrors) -> bool:
    """Close all; give up, with a warning, after CLOSE_SECONDS. Whether all were closed."""

    def close() -> None:
        for board in boards:
            board.close()

    thread = threading.Thread(target=close, name="boards", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        names = " or ".join(board.name for board in boards)
        errors.warn(f"{names} has not shown all figures after {CLOSE_SECONDS:g} s; the run ends without")
    return not thread.is_alive()


class Board:
    """A sink until it fails: that is said once, and nothing more is sent there."""

    def __init__(self, name: str, errors: SaveErrors, start: Callable[[], Sink]) -> None:
        self.name = name
        self._errors = errors
        self._sink: Sink | None = self._try(start)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if (sink := self._sink) is not None:
            self._try(lambda: sink.log(values, step))

    def close(self) -> None:
        if (sink := self._sink) is not None:
            self._try(sink.finish)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # of any kind: it is somebody else's code, and nothing depends on it
            self._sink = None
            self._errors.warn(f"{self.name} shows nothing from here on: {type(error).__name__}: {error}")


class EventFile:
    """A file of TensorBoard's own format, written without the second thread that its SummaryWriter has."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported here: reading metrics does not need it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{os.uname().nodename}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("ab"))  # a second one of this process and second
        self._add(Event(file_version="brain.Event:2"))
        # Later steps in older files are of an attempt that was given up.
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        value = [self._summary.Value(tag=name, simple_value=number) for name, number in values.items()]
        self._add(self._event(step=step, summary=self._summary(value=value)))
        self._file.flush()

    def finish(self) -> None:
        self._file.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
