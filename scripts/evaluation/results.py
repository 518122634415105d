"""Results of evaluations: one JSON file per model, and all of a folder's as TensorBoard, plot and table.

OUTPUT/iter-00000100.json   the results of one model
OUTPUT/tensorboard/         every metric over the steps, rewritten each time
OUTPUT/results.png          the same as a picture
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.cli import InputError
from lit_gpt.files import write_atomically


@dataclass(frozen=True)
class Score:
    """A metric of a task."""

    value: float
    stderr: float | None
    """Standard error over the items; None where the harness gives none."""


@dataclass(frozen=True)
class TaskResult:
    """A task, or a group of tasks as one."""

    metrics: dict[str, Score]
    num_fewshot: int | None
    """Examples in the prompt; None for a group whose tasks differ."""
    n_items: int
    version: str
    group: str | None
    """The group of which it is a part and whose mean says more."""


@dataclass
class ModelResults:
    """The results of one model, by what was asked for (a task, a tag or a preset) and then by task."""

    name: str
    step: int | None
    """Optimizer steps of the checkpoint, where its name says so."""
    weights: str
    """Hash of the weights that were evaluated."""
    settings: dict[str, Any]
    """Settings that change a result, besides weights and tasks."""
    versions: dict[str, str]
    """Of the programs, by name; of the latest evaluation."""
    tasks: dict[str, dict[str, TaskResult]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "ModelResults":
        """Read a file that `save` wrote.

        Raises:
            InputError: it is another kind of file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            asked = {
                name: {task: _task_result(**result) for task, result in results.items()}
                for name, results in content.pop("tasks").items()
            }
            return cls(tasks=asked, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} does not hold results ({error}); move it out of the output folder"
            ) from error

    def save(self, folder: Path) -> None:
        write_atomically(folder / f"{self.name}.json", json.dumps(asdict(self), indent=1) + "\n")

    def scores(self) -> Iterator[tuple[str, str, Score]]:
        """(task, metric, score) of every task that is not part of a group, and of every group."""
        for results in self.tasks.values():
            for task, result in results.items():
                if result.group is None:
                    yield from ((task, metric, score) for metric, score in result.metrics.items())


def load_all(folder: Path) -> list[ModelResults]:
    """Every result in a folder, by step, those without one first."""
    results = [ModelResults.load(path) for path in folder.glob("*.json")]
    return sorted(results, key=lambda result: (result.step is not None, result.step, result.name))


def write_tensorboard(results: list[ModelResults], folder: Path) -> None:
    """Every metric over the steps."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for result in results:
            for task, metric, score in result.scores():
                writer.add_scalar(f"{task}/{metric}", score.value, result.step)


def draw(results: list[ModelResults], path: Path) -> None:
    """A panel per task: each metric over the steps with its standard error; nothing without steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves: dict[str, dict[str, list[tuple[int, Score]]]] = {}
    for result in results:
        for task, metric, score in result.scores():
            if result.step is not None:
                curves.setdefault(task, {}).setdefault(metric, []).append((result.step, score))
    if not curves:
        return
    columns = math.ceil(math.sqrt(len(curves)))
    rows = math.ceil(len(curves) / columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(5 * columns, 3.5 * rows), layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(curves) :]:
        panel.axis("off")
    for panel, (task, metrics) in zip(panels.flat, curves.items(), strict=False):
        for metric, points in metrics.items():
            steps = [step for step, _ in points]
            values = [score.value for _, score in points]
            errors = [score.stderr or 0.0 for _, score in points]
            panel.errorbar(steps, values, errors, fmt="o-", markersize=3, capsize=2, label=metric)
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(results: list[ModelResults]) -> Iterator[str]:
    """A line per model, task and metric."""
    for result in results:
        for task, metric, score in result.scores():
            error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
            yield f"{result.name}  {task}  {metric}  {score.value:.4f}{error}"


def _task_result(metrics: dict[str, Any], **fields: Any) -> TaskResult:
    return TaskResult({name: Score(**score) for name, score in metrics.items()}, **fields)
