"""The plan of stages in state.json, and which stage a checkpoint is continued in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import InputError
from pretrain.data.training_data import compare_data
from pretrain.stages.options import TRAINING_OPTIONS
from pretrain.stages.stage import Stage

_IN_DATA = ("train_data_dir", "block_size", "packing")  # compared as data


def describe_plan(stages: Sequence[Stage], current: Stage) -> dict[str, Any]:
    """For state.json: the stages as they were resolved, and the number of the current one.

    Nothing for a run without stages.
    """
    if not current.name:
        return {}
    return {"stage": current.plan.number, "stages": [_describe(stage) for stage in stages]}


def _describe(stage: Stage) -> dict[str, Any]:
    options = {name: getattr(stage.options, name) for name in TRAINING_OPTIONS}
    decided = stage.schedule.as_options()
    return {
        "name": stage.name,
        "steps": decided.pop("max_steps"),
        "fresh_optimizer": stage.plan.fresh_optimizer,
        "options": options | decided,
        "data": stage.data.describe(),
    }


def stage_to_continue(
    folder: Path, state: dict[str, Any], stages: Sequence[Stage], allow_changed_data: bool = False
) -> Stage:
    """The stage of the step after a checkpoint.

    Args:
        folder: Of the checkpoint, for messages.
        state: Its state.json.
        stages: As the options have them now. Those after the checkpoint's may differ from its plan.

    Raises:
        InputError: a stage that is finished, or was begun, is not what it was.
    """
    saved, number = state.get("stages", []), state.get("stage", 0)
    if bool(saved) != bool(stages[0].name):
        has = "has" if saved else "has no"
        raise InputError(
            f"{folder} is of a run that {has} stages: continue it as it was, or start another run with "
            "--initial_checkpoint_dir"
        )
    if not saved:
        return stages[0]
    if number >= len(stages):
        raise InputError(
            f"{folder} was saved in stage {saved[number]['name']}, which the options no longer have"
        )
    for before, stage in zip(saved[: number + 1], stages, strict=False):
        at_end = state["step"] == stage.schedule.last_step == stage.steps_before + before["steps"]
        finished = stage.plan.number < number or (at_end and number + 1 < len(stages))
        if changes := _changes(before, stage, finished, allow_changed_data):
            raise InputError(
                f"stage {before['name']} is {'finished' if finished else 'begun'} and cannot be changed: "
                f"{'; '.join(changes)}; restore it, or start another run with --initial_checkpoint_dir"
            )
    current = stages[number]
    if state["step"] > current.schedule.last_step:
        done = state["step"] - current.steps_before
        raise InputError(f"stage {current.name}: {done} steps of it are done; give at least as many")
    if state["step"] == current.schedule.last_step and number + 1 < len(stages):
        return stages[number + 1]
    return current


def _changes(before: dict[str, Any], stage: Stage, finished: bool, allow_changed_data: bool) -> list[str]:
    """What of a stage is not what it was, in words.

    The rates and the length of a stage that is under way may change, as those of a run without stages.
    """
    now = _describe(stage)
    changes = [] if allow_changed_data else compare_data(before["data"], now["data"])
    names = ("name", "steps", "fresh_optimizer")
    old = {name: before[name] for name in names} | before["options"]
    new = {name: now[name] for name in names} | now["options"]
    compared = ["name", "fresh_optimizer", "global_batch_size", "rope_scaling", "rope_base", "trainable"]
    if finished:
        compared = [name for name in old if name not in _IN_DATA]
    return changes + [
        f"{name} was {old[name]} and is {new.get(name)}" for name in compared if old[name] != new.get(name)
    ]
