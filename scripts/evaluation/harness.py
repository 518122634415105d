"""lm-evaluation-harness as evaluate.py uses it: a model, tasks by name, results."""

import importlib.metadata
from pathlib import Path
from typing import Any

from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import adds_bos
from scripts.evaluation.german_tasks import GERMANBENCH_VERSION, PRESETS, Spec
from scripts.evaluation.results import Score, TaskResult

# The harness's own default, so that the same examples are drawn.
_FEWSHOT_SEED = 1234
# For metrics whose standard error has no formula.
_BOOTSTRAP_SAMPLES = 1000
_PROGRAMS = ("lm_eval", "transformers", "datasets", "torch")


def versions() -> dict[str, str]:
    """Of the programs that results depend on.

    Raises:
        InputError: one is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in _PROGRAMS}
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"evaluation needs {error.name}: pip install -r requirements.txt") from None


def load_model(folder: Path, *, dtype: str, device: str, batch_size: int) -> Any:
    """A Hugging Face folder as the harness sees it. Neither pickled weights nor code in it are looked at.

    Args:
        dtype: `auto` is that of the weights.
        device: `auto` is a GPU if there is one.

    Raises:
        InputError: it does not load.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from safetensors import SafetensorError

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = HFLM(
            pretrained=str(folder),
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} does not load on {device}: {_one_line(error)}") from error
    # BOS goes before a text if the folder's tokenizer puts it there, as before the documents of training. The
    # harness would begin an empty context with BOS all the same, which a model without it has never seen.
    if not adds_bos(model.tokenizer):
        model.custom_prefix_token_id = model.tokenizer.eos_token_id
    return model


def load_tasks(name: str, include_path: Path | None, num_fewshot: int | None) -> Any:
    """Load what the harness evaluates for a preset, task, group or tag.

    Args:
        include_path: Folder of the user's own task files.
        num_fewshot: Instead of what presets and tasks say; a task that says 0 keeps it.

    Raises:
        InputError: there is no such name, or its data cannot be had.
    """
    try:
        specs = PRESETS[name]() if name in PRESETS else [Spec(name)]
        manager = _task_manager([spec.task for spec in specs if isinstance(spec.task, str)], include_path)
        parts = [manager.load([spec.task]) for spec in specs]
    except (OSError, ValueError) as error:
        raise InputError(
            f"--tasks {name} does not load ({_one_line(error)}): its data must be on the network, in the "
            "cache of `datasets` on this machine, or local to a task file of your own (--include_path)"
        ) from error
    for spec, part in zip(specs, parts, strict=True):
        for task in part["tasks"].values():
            of_task = task.get_config("num_fewshot")
            if of_task != 0:
                chosen = (num_fewshot, spec.num_fewshot, of_task, 0)
                task.set_config("num_fewshot", next(number for number in chosen if number is not None))
    return {kind: {k: v for part in parts for k, v in part[kind].items()} for kind in parts[0]}


def _task_manager(names: list[str], include_path: Path | None) -> Any:
    """Knows the names. The harness's own, thousands of files, are read only when one of them is meant."""
    from lm_eval.tasks import TaskManager

    for with_its_own in (False, True):
        manager = TaskManager(include_path=include_path, include_defaults=with_its_own)
        unknown = [name for name in names if name not in manager.task_index]
        if not unknown:
            return manager
    own = f", and none of --include_path {include_path}" if include_path else ""
    raise InputError(
        f"--tasks {unknown[0]}: no preset ({', '.join(PRESETS)}), no task, group or tag of the harness{own}"
    )


def run_tasks(model: Any, tasks: Any, limit: int | None) -> dict[str, TaskResult]:
    """Results of what `load_tasks` gave, by task; for a group also the group's.

    Raises:
        InputError: the harness refuses a task.
    """
    from lm_eval import evaluate

    seed_examples(tasks)
    try:
        found = evaluate(model, tasks, limit=limit, bootstrap_iters=_BOOTSTRAP_SAMPLES, log_samples=False)
    except ValueError as error:
        raise InputError(f"the harness refuses a task: {_one_line(error)}") from error
    group_of = {
        part.task_name: name for name, group in tasks["groups"].items() for part in group.get_all_tasks()
    }
    return {
        name: TaskResult(
            metrics=_scores(values),
            num_fewshot=found["n-shot"].get(name),
            n_items=values["sample_len"],
            version=str(found["versions"].get(name)),
            group=group_of.get(name),
        )
        for name, values in found["results"].items()
    }


def is_current(name: str, results: dict[str, TaskResult]) -> bool:
    """Whether results of a preset or task are of today's tasks, as far as that is up to the project."""
    versions = {result.version for result in results.values()}
    return name != "germanbench" or str(GERMANBENCH_VERSION) in versions


def seed_examples(tasks: Any) -> None:
    """Reset the seeds, so that prompts have the same examples for every model."""
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(_FEWSHOT_SEED)


def _scores(values: dict[str, Any]) -> dict[str, Score]:
    """From the harness's `acc,none` and `acc_stderr,none`, where `none` names a filter of answers."""
    scores = {}
    for key, value in values.items():
        metric, _, answers = key.partition(",")
        if answers and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = values.get(f"{metric}_stderr,{answers}")
            name = metric if answers == "none" else f"{metric} ({answers})"
            scores[name] = Score(float(value), float(stderr) if isinstance(stderr, int | float) else None)
    return scores


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
