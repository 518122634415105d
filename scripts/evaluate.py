#!/usr/bin/env python
"""lm-evaluation-harness on a Hugging Face folder, or on every checkpoint of a run."""

import contextlib
import functools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.checkpoint.folder import MANIFEST, list_checkpoints
from lit_gpt.cli import InputError, run_command
from lit_gpt.files import new_folder
from lit_gpt.hashed_files import hash_files
from lit_gpt.hf.exporter import write_hf_folder
from lit_gpt.hf.trained_model import open_checkpoint
from lit_gpt.option_types import NonNegativeInt, PositiveInt
from scripts.evaluation.harness import is_current, load_model, load_tasks, run_tasks, versions
from scripts.evaluation.results import ModelResults, draw, load_all, table, write_tensorboard


@dataclass
class EvaluateOptions:
    """Evaluate models with lm-evaluation-harness. Tasks with results in the output folder are skipped."""

    model: Path
    """A Hugging Face folder; a run's out_dir, whose checkpoints are converted on the way; or a folder of
    Hugging Face folders iter-N, as `scripts/create.sh --all` writes it."""
    output: Path
    """Folder for the results: a JSON file per model, tensorboard/ and results.png."""
    tasks: list[str] = field(default_factory=lambda: ["germanbench"])
    """Presets (germanbench, okapi_de), and names of tasks, groups and tags."""
    include_path: Path | None = None
    """Folder of task files (YAML) of your own; they need no network if their data is local. A task file may
    name Python functions, which then run: give only folders that you trust."""
    num_fewshot: NonNegativeInt | None = None
    """Examples in the prompt; as the preset or the task says when not given."""
    limit: PositiveInt | None = None
    """Items of each task, for a trial; when not given all."""
    batch_size: PositiveInt = 16
    """Sequences at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """To compute in; auto: as the weights are stored."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""
    tokenizer_path: Path | None = None
    """The tokenizer of the training data, for a run whose token store has moved."""


class Model(NamedTuple):
    """Something to evaluate."""

    name: str
    step: int | None
    """Optimizer steps, where the name says so."""
    folder: Path
    """A Hugging Face folder or a checkpoint."""


def main(options: EvaluateOptions) -> None:
    """Evaluate what is not evaluated yet, then sum up the output folder."""
    models = find_models(options.model)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {options.output}: {error.strerror}") from error
    include_path, num_fewshot = options.include_path, options.num_fewshot
    load = functools.cache(lambda name: load_tasks(name, include_path, num_fewshot))
    failures = []
    for model in models:
        try:
            evaluate_model(model, load, options)
        except InputError as error:
            if len(models) == 1:
                raise
            # One damaged checkpoint must not keep the others from being evaluated.
            print(f"{model.name}: {error}", file=sys.stderr, flush=True)
            failures.append(model.name)
    if results := load_all(options.output):
        write_tensorboard(results, options.output / "tensorboard")
        draw(results, options.output / "results.png")
        print("\n".join(table(results)))
    if failures:
        raise InputError(f"{', '.join(failures)} could not be evaluated, see above")


def find_models(folder: Path) -> list[Model]:
    """Find the models to evaluate, oldest step first.

    Raises:
        InputError: nothing.
    """
    if (folder / "config.json").is_file():
        folders = [folder]
    else:
        folders = [path for _, path in list_checkpoints(folder)]
        folders = folders or [path.parent for path in folder.glob("iter-*/config.json")]
    if not folders:
        raise InputError(
            f"--model {folder} is not a Hugging Face folder (config.json), a run (iter-N-ckpt.pth) or a "
            "folder of Hugging Face folders iter-N"
        )
    models = []
    for path in folders:
        name = path.resolve().name.removesuffix("-ckpt.pth")
        step = re.fullmatch(r"iter-(\d+)", name)
        models.append(Model(name, int(step[1]) if step else None, path))
    return sorted(models, key=lambda model: model.step or 0)


def evaluate_model(model: Model, load: Callable[[str], Any], options: EvaluateOptions) -> None:
    """Evaluate one model on the tasks that its results lack; each task's results are saved when it is done.

    Raises:
        InputError: the model or a task cannot be used, or the results are of other weights or settings.
    """
    results = _results_so_far(model, options)
    todo = [name for name in options.tasks if name not in results.tasks]
    if not todo:
        print(f"{model.name}: already evaluated", flush=True)
        return
    tasks = {name: load(name) for name in todo}
    with _hugging_face_folder(model, options) as folder:
        loaded = load_model(folder, dtype=options.dtype, device=options.device, batch_size=options.batch_size)
        for name in todo:
            print(f"{model.name}: {name}", flush=True)
            results.tasks[name] = run_tasks(loaded, tasks[name], options.limit)
            results.save(options.output)


def _results_so_far(model: Model, options: EvaluateOptions) -> ModelResults:
    settings = {name: getattr(options, name) for name in ("num_fewshot", "limit", "dtype")}
    wanted = ModelResults(model.name, model.step, _hash_of_weights(model.folder), settings, versions())
    path = options.output / f"{model.name}.json"
    if not path.is_file():
        return wanted
    found = ModelResults.load(path)
    for what in ("weights", "settings"):
        if getattr(found, what) != getattr(wanted, what):
            raise InputError(
                f"{path} has results of other {what} ({getattr(found, what)}, not {getattr(wanted, what)}): "
                "give another --output, or move it away"
            )
    for name in [name for name, tasks in found.tasks.items() if not is_current(name, tasks)]:
        print(f"{model.name}: {path} has results of an earlier version of {name}, which do not count")
        del found.tasks[name]
    found.versions = wanted.versions
    return found


def _hash_of_weights(folder: Path) -> str:
    """A checkpoint's manifest names the hash of every file; of another folder the weights are read."""
    manifest = folder / MANIFEST
    files = [manifest] if manifest.is_file() else sorted(folder.glob("*.safetensors"))
    return hash_files(*files).xxh3_128


@contextlib.contextmanager
def _hugging_face_folder(model: Model, options: EvaluateOptions) -> Iterator[Path]:
    """The folder itself, or what a checkpoint converts to, for as long as it is needed."""
    if not (model.folder / MANIFEST).is_file():
        yield model.folder
        return
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=options.output) as folder:
        with new_folder(Path(folder) / model.name) as converted:
            write_hf_folder(converted, open_checkpoint(model.folder, options.tokenizer_path), losses={})
        yield Path(folder) / model.name


if __name__ == "__main__":
    run_command(EvaluateOptions, main)
