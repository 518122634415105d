"""The plan of stages in state.json, and which stage a checkpoint is continued in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from lit_gpt.errors import InputError
from pretrain.data.training_data import TrainingData, compare_data
from pretrain.stages.options import TRAINING_OPTIONS, PlannedStage
from pretrain.stages.stage import Stage

_IN_DATA = ("train_data_dir", "block_size", "packing")  # compared as data


PlannedT = TypeVar("PlannedT", bound=PlannedStage)


def describe_plan(stages: Sequence[Stage], current: Stage) -> dict[str, Any]:
    """For state.json: the stages as they were resolved, and the number of the current one.

    Nothing for a run without stages.
    """
    if not current.name:
        return {}
    described = [{**_describe(stage), "data": stage.data.describe()} for stage in stages]
    return {"stage": current.plan.number, "stages": described}


def _describe(stage: PlannedStage) -> dict[str, Any]:
    options = {name: getattr(stage.options, name) for name in TRAINING_OPTIONS}
    decided = stage.schedule.as_options()
    return {
        "name": stage.name,
        "steps": decided.pop("max_steps"),
        "fresh_optimizer": stage.plan.fresh_optimizer,
        "options": options | decided,
    }


def stage_to_continue(
    folder: Path, state: dict[str, Any], stages: Sequence[PlannedT], data: Sequence[TrainingData] | None
) -> PlannedT:
    """The stage of the step after a checkpoint.

    Args:
        folder: Of the checkpoint, for messages.
        state: Its state.json.
        stages: As the options have them now. Those after the checkpoint's may differ from its plan.
        data: Of each stage; None: not compared.

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
        at_end = state["step"] == stage.schedule.last_step == stage.plan.steps_before + before["steps"]
        finished = stage.plan.number < number or (at_end and number + 1 < len(stages))
        changes = _changes(before, stage, finished)
        if data is not None and before["name"] == stage.name:
            changes = compare_data(before["data"], data[stage.plan.number].describe()) + changes
        if changes:
            raise InputError(
                f"stage {before['name']} is {'finished' if finished else 'begun'} and cannot be changed: "
                f"{'; '.join(changes)}; restore it, or start another run with --initial_checkpoint_dir"
            )
    current = stages[number]
    if state["step"] > current.schedule.last_step:
        done = state["step"] - current.plan.steps_before
        raise InputError(f"stage {current.name}: {done} steps of it are done; give at least as many")
    if state["step"] == current.schedule.last_step and number + 1 < len(stages):
        return stages[number + 1]
    return current


def _changes(before: dict[str, Any], stage: PlannedStage, finished: bool) -> list[str]:
    """What of a stage, apart from its data, is not what it was, in words.

    The rates and the length of a stage that is under way may change, as those of a run without stages.
    """
    now = _describe(stage)
    if before["name"] != now["name"]:
        return [f"it was stage {stage.plan.number + 1} of the run, where the options have {now['name']}"]
    names = ("name", "steps", "fresh_optimizer")
    old = {name: before[name] for name in names} | before["options"]
    new = {name: now[name] for name in names} | now["options"]
    compared = ["name", "fresh_optimizer", "global_batch_size", "rope_scaling", "rope_base", "trainable"]
    if finished:
        compared = [name for name in old if name not in _IN_DATA]
    return [
        f"{name} was {old[name]} and is {new.get(name)}" for name in compared if old[name] != new.get(name)
    ]
