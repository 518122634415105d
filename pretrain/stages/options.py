"""The options of each stage: those of the run, with the ones that differ replaced, and checked."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_gpt.errors import InputError
from lit_gpt.option_types import PositiveInt, convert_fields, quoted, suggestion
from pretrain.extension import with_new_rows
from pretrain.options import TrainOptions
from pretrain.schedules import Schedule

TRAINING_OPTIONS = (
    # What the model is fed and which parameters learn from it.
    *("train_data_dir", "packing", "block_size", "global_batch_size"),
    *("rope_scaling", "rope_base", "trainable"),
    # How they learn.
    *("learning_rate", "min_lr", "warmup_steps", "lr_schedule", "decay_steps"),
    *("weight_decay", "beta1", "beta2", "grad_clip"),
)
"""May differ between stages; those of a finished stage stay as they were."""
STAGE_OPTIONS = (
    *TRAINING_OPTIONS,
    *("micro_batch_size", "activation_checkpointing"),
    *("save_step_interval", "eval_step_interval", "log_step_interval"),
)
"""May differ between stages."""

_NEEDS = {
    "model_name": "make an initial checkpoint of the new shape",
    "initial_checkpoint_dir": "a stage starts from the stage before; make it a run of its own",
    "max_steps": "write steps",
    "max_epochs": "write steps",
}


@dataclass(frozen=True)
class _OwnKeys:
    """The keys of a stage that are no options of a run."""

    name: str
    steps: PositiveInt
    optimizer: Literal["keep", "fresh"] | None = None


@dataclass(frozen=True)
class StageOptions:
    """One stage, its options resolved.

    Attributes:
        name: Unique in the run; "" for a run without stages.
        number: From 0.
        steps_before: Steps of the stages before it.
        options: Of an ordinary run that consists of this stage; `max_steps` is the stage's length.
        fresh_optimizer: Whether it begins without the moments of the stage before.
    """

    name: str
    number: int
    steps_before: int
    options: TrainOptions
    fresh_optimizer: bool = False

    @property
    def last_step(self) -> int:
        """Of the run the last step in this stage, whose length is given."""
        assert self.options.max_steps is not None
        return self.steps_before + self.options.max_steps


@dataclass(frozen=True)
class PlannedStage:
    """A stage and its schedule; its data is opened (`stage.Stage`) or counted (`launch.plan.StagePlan`)."""

    plan: StageOptions
    schedule: Schedule

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def options(self) -> TrainOptions:
        return self.plan.options

    @property
    def steps_before(self) -> int:
        """Steps of the run before this stage."""
        return self.plan.steps_before


def resolve_stages(options: TrainOptions) -> list[StageOptions]:
    """The stages of a run; one for a run without `stages`. No data is opened.

    Raises:
        InputError: one line that names the stages and all that is wrong with them.
    """
    if options.stages is None:
        options.check()
        return [StageOptions("", 0, 0, with_new_rows(options))]
    if not options.stages:
        raise InputError("stages is an empty list: name at least one stage, or leave it out")
    if options.max_steps is not None or options.max_epochs is not None:
        raise InputError("--max_steps and --max_epochs are for runs without stages: each stage has its steps")
    resolved: list[StageOptions] = []
    mistakes: dict[str, list[str]] = {}
    for number, table in enumerate(options.stages):
        try:
            resolved.append(_resolve(options, number, table, resolved))
        except InputError as error:
            mistakes.setdefault(str(error), []).append(str(table.get("name", number + 1)))
    if mistakes:
        raise InputError(in_one_line(mistakes))
    return resolved


def in_one_line(mistakes: Mapping[str, Sequence[str]]) -> str:
    """Mistakes, and the names of the stages that have each: one of the whole run is said once."""
    said = []
    for message, names in mistakes.items():
        label = f"stage{'s' if len(names) > 1 else ''} {', '.join(names)}: " if names else ""
        said.append(f"{label}{message}")
    return "; ".join(said)


def _resolve(
    run: TrainOptions, number: int, table: Mapping[str, Any], earlier: Sequence[StageOptions]
) -> StageOptions:
    own_names = [field.name for field in dataclasses.fields(_OwnKeys)]
    own, mistakes = convert_fields(_OwnKeys, {name: table[name] for name in table if name in own_names})
    mistakes += [f"{name} is missing" for name in ("name", "steps") if name not in table]
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", own.get("name", "x")):
        mistakes.append(f"name {quoted(own['name'])}: use letters, digits, _ . and - only")
    if any(stage.name == own.get("name") for stage in earlier):
        mistakes.append("there are two of this name; names are unique")
    mistakes += [_refusal(name) for name in table if name not in (*own_names, *STAGE_OPTIONS)]
    differing, wrong = convert_fields(
        TrainOptions, {name: value for name, value in table.items() if name in STAGE_OPTIONS}
    )
    if mistakes := mistakes + wrong:
        raise InputError("; ".join(mistakes))
    keys = _OwnKeys(**own)
    options = dataclasses.replace(run, stages=None, max_steps=keys.steps, max_epochs=None, **differing)
    options.check()
    options = with_new_rows(options)
    if number == 0 and keys.optimizer == "keep":
        raise InputError("optimizer: keep, but there is no stage before it to keep that of")
    if not earlier:
        return StageOptions(keys.name, number, 0, options)
    before = earlier[-1]
    return StageOptions(keys.name, number, before.last_step, options, _is_fresh(keys, options, before))


def _is_fresh(keys: _OwnKeys, options: TrainOptions, before: StageOptions) -> bool:
    """Moments are kept unless asked otherwise; they do not fit other trainable parameters."""
    changed = options.trainable != before.options.trainable
    if changed and keys.optimizer == "keep":
        raise InputError(
            "optimizer: keep does not go with another trainable than in the stage before, whose "
            "moments would move what is frozen now; write optimizer: fresh"
        )
    return changed or keys.optimizer == "fresh"


def _refusal(name: str) -> str:
    if name in _NEEDS:
        return f"{name} cannot differ between stages: {_NEEDS[name]}"
    if name in {field.name for field in dataclasses.fields(TrainOptions)}:
        return f"{name} cannot differ between stages: give it for the whole run, or begin a new run"
    known = [*(field.name for field in dataclasses.fields(_OwnKeys)), *STAGE_OPTIONS]
    return f"{name}: no such key{suggestion(name, known)}"
