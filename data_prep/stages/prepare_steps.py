"""Whole commands as steps of a pipeline, and the record of where a store comes from."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.stages.pipeline import write_json

_NOT_OF_THE_RESULT = ("cpu_seconds", "peak_megabytes", "tasks")


class RunCommand(PipelineStep):
    """A command in a task of its own."""

    type = "RUN"

    def __init__(self, main: Callable[[Any], None], options: Any, done: Path | None = None) -> None:
        """`done` is the file that the command writes last, for one that refuses to run twice."""
        self.name = main.__module__
        super().__init__()
        self.main = main
        self.options = options
        self.done = done

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Yields nothing."""
        if self.done is None or not self.done.exists():
            self.main(self.options)
        yield from ()


class RecordOrigin(PipelineStep):
    """Writes what the store's manifest will quote: the inputs and their hashes, all settings and counts.

    What differs from run to run, as the seconds taken, is left out.
    """

    type, name = "RECORD", "origin"

    def __init__(self, inputs: Path, parts: dict[str, Path], path: Path) -> None:
        super().__init__()
        self.inputs = inputs
        self.parts = parts
        self.path = path

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Yields nothing."""
        origin: dict[str, Any] = {
            "inputs": [json.loads(path.read_text("utf-8")) for path in sorted(self.inputs.glob("*.json"))]
        }
        for name, folder in self.parts.items():
            stats = json.loads((folder / "stats.json").read_text("utf-8"))
            stats["settings"].pop("files")
            for counts in stats["stages"].values():
                for measure in _NOT_OF_THE_RESULT:
                    counts.pop(measure, None)
            origin[name] = stats
        write_json(self.path, origin)
        yield from ()
