"""A stage, opened: its data, its shape, and where in the run's order of samples and rates it begins."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.rows.packed_store import PackedStore
from pretrain.data.inputs import open_inputs
from pretrain.data.numbering import Numbering
from pretrain.data.training_data import TrainingData
from pretrain.monitor.epochs import Epochs
from pretrain.options import TrainOptions
from pretrain.schedules import Schedule, make_schedule
from pretrain.shape import initial_shape
from pretrain.stages.options import PlannedStage, StageOptions
from pretrain.stages.starts import Starts, StoreRows

FEW_PAST = 0.05
SHARDS_LOOKED_AT = 8  # of a store, for an estimate


@dataclass(frozen=True)
class Stage(PlannedStage):
    """What one stage works on; a run without stages is one."""

    data: TrainingData
    validation: dict[str, PackedStore]
    config: ModelConfig
    epochs: Epochs
    numbering: Numbering
    block_size_before: int | None
    """Of the stage before or of the initial checkpoint; None where weights are drawn."""
    repeats: list[str]
    """Warnings about documents that an earlier stage reads too."""

    @property
    def stores(self) -> list[PackedStore]:
        """All that it reads, the validation's too."""
        return [*self.data.stores, *self.validation.values()]

    def with_options(self, options: TrainOptions) -> "Stage":
        """The only stage of a run, of another length or on other rates."""
        plan = dataclasses.replace(self.plan, options=options)
        return dataclasses.replace(self, plan=plan, schedule=make_schedule(options, self.epochs.rows))

    def describe(self) -> list[str]:
        """For its first lines: what follows from the stages before."""
        lines = [*(f"warning: {warning}" for warning in self.repeats), *self.long_range()]
        differ = self.plan.number and self.config.block_size != self.block_size_before
        if differ and self.validation and self.options.eval_iters:
            lines.append(
                "warning: rows of another length are another sample of the validation documents: compare "
                "losses across this border with --eval_iters 0"
            )
        return lines

    def long_range(self) -> list[str]:
        """Where rows grew: how much of the data is longer than the rows before."""
        before = self.block_size_before
        if before is None or self.config.block_size <= before:
            return []
        shares, weights = _past(self.data, before)
        share = float(np.average(shares, weights=weights))
        said = f"{share:.1%} of the targets lie past the first {before:,} of their document"
        if share >= FEW_PAST:
            return [f"long range: {said}"]
        return [
            f"warning: {said}: longer rows train long range only where documents are long; keep long ones "
            "with data_prep/tokenize_corpus.py --min_tokens"
        ]


def open_stages(plans: Sequence[StageOptions]) -> list[Stage]:
    """Open and pack the data of all stages, in their order: a store continues where an earlier stage left it.

    Raises:
        InputError: data or shape of a stage cannot be used; it is named.
    """
    stages: list[Stage] = []
    starts = Starts()
    for plan in plans:
        try:
            stages.append(_open(plan, stages[-1] if stages else None, starts if len(plans) > 1 else None))
        except InputError as error:
            if not plan.name or str(error).startswith("stage "):
                raise
            raise InputError(f"stage {plan.name}: {error}") from error
    return stages


def _open(plan: StageOptions, before: Stage | None, starts: Starts | None) -> Stage:
    shape_before = before.config if before else initial_shape(plan.options)
    inputs = open_inputs(plan.options, shape_before)
    data, size = inputs.data, plan.options.global_batch_size
    if before and _tokenizer(data) != _tokenizer(before.data):
        raise InputError(
            f"{data.stores[0].store.path} was made with another tokenizer than the data of stage "
            f"{before.name}; another tokenizer needs another initial checkpoint, not a stage"
        )
    repeats: list[str] = []
    if starts is not None:
        data, repeats = _place(data, plan, starts)
    epochs = Epochs.of(data, size, plan.steps_before)
    schedule = schedule_of(plan, epochs.rows, before.schedule if before else None)
    numbering = Numbering(size, plan.steps_before, data.order.start.first_sample)
    return Stage(
        plan=plan,
        data=data,
        validation=inputs.validation,
        config=inputs.config,
        epochs=epochs,
        numbering=numbering,
        schedule=schedule,
        block_size_before=shape_before.block_size if shape_before else None,
        repeats=repeats,
    )


def schedule_of(plan: StageOptions, rows_per_epoch: int, before: Schedule | None) -> Schedule:
    """Of a stage: it warms up from the last rate of the stage before. Raises as `make_schedule`."""
    return dataclasses.replace(
        make_schedule(plan.options, rows_per_epoch),
        steps_before=plan.steps_before,
        initial=before.learning_rate(before.last_step) if before else 0.0,
    )


def _place(data: TrainingData, plan: StageOptions, starts: Starts) -> tuple[TrainingData, list[str]]:
    """The data, begun where the stages before ended, and warnings about what they read already."""
    stores = [StoreRows.of(packed.store, packed.share, data.options) for packed in data.stores]
    start = starts.begin(stores)
    repeats = starts.repeats(stores)
    placed = TrainingData(data.options, data.stores, data.weights, start=start)
    samples = (plan.options.max_steps or 0) * plan.options.global_batch_size
    starts.end(plan.name, stores, placed.order.positions_after(start.first_sample + samples), samples)
    return placed, repeats


def _tokenizer(data: TrainingData) -> str:
    return data.stores[0].store.manifest.tokenizer


def _past(data: TrainingData, block_size: int) -> tuple[list[float], list[float]]:
    """Of each store the share of targets past that position in a row's segment, and its weight."""
    shares = []
    for packed in data.stores:
        shards = np.linspace(0, packed.store.n_shards - 1, SHARDS_LOOKED_AT, dtype=int)
        lengths = np.concatenate([packed.rows(shard).length for shard in np.unique(shards).tolist()])
        shares.append(float(np.maximum(lengths - block_size, 0).sum() / max(lengths.sum(), 1)))
    return shares, data.weights or [int(packed.rows_per_shard.sum()) for packed in data.stores]
