"""Open what a job will open, as far as that needs no device, and plan it."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from lit_gpt.checkpoint.folder import DamagedCheckpoint, list_checkpoints, read_state
from lit_gpt.cli import InputError
from lit_gpt.hf.trained_model import check_tokenizer
from lit_gpt.model.config import ModelConfig
from lit_gpt.rows.packable import check_masked
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.sample_order import SampleOrder
from lit_gpt.rows.store_entry import DocumentShare, StoreEntry, parse_stores, weights_of
from lit_gpt.store.token_store import TokenStore
from pretrain.data.validation import named_stores, template_warnings
from pretrain.launch.plan import JobPlan, StagePlan
from pretrain.monitor.epochs import Epochs, StoreSize
from pretrain.options import TrainOptions
from pretrain.shape import initial_shape, length_warnings, resolve_shape
from pretrain.stages.options import StageOptions, in_one_line, resolve_stages
from pretrain.stages.resume import stage_to_continue
from pretrain.stages.stage import schedule_of
from pretrain.stages.starts import Starts, StoreRows
from pretrain.trainable import frozen_rows

T = TypeVar("T")


class _Mistakes:
    """All that is found wrong, and in which stages."""

    def __init__(self) -> None:
        self.stage = ""
        """The one that is looked at."""
        self._found: dict[str, list[str]] = {}

    def add(self, message: str) -> None:
        self._found.setdefault(message, []).extend([self.stage] if self.stage else [])

    def attempt(self, look: Callable[[], T]) -> T | None:
        """What `look` gives; None where it finds a mistake, which is noted."""
        try:
            return look()
        except InputError as error:
            self.add(str(error))
            return None

    def refuse(self) -> None:
        """Raise InputError where there are any."""
        if self._found:
            raise InputError(in_one_line(self._found))


def examine(options: TrainOptions) -> JobPlan:
    """Plan the job; nothing is packed or written.

    Raises:
        InputError: all that was found wrong, in one line.
    """
    mistakes = _Mistakes()
    plans = mistakes.attempt(partial(resolve_stages, options))
    if plans is None:  # the mistakes in the data of a run without stages are found all the same
        plans = [StageOptions("", 0, 0, options)] if options.stages is None else []
    if options.resume not in (None, "auto"):
        mistakes.add(f"--resume {options.resume}: a job continues from its newest checkpoint; leave it out")
    named = mistakes.attempt(lambda: named_stores(options.val_data_dir or [])) or {}
    opened = [mistakes.attempt(partial(TokenStore.open, path)) for path in named.values()]
    validation = [store for store in opened if store]
    stages: list[StagePlan] = []
    starts = Starts() if len(plans) > 1 else None
    for plan in plans:
        mistakes.stage = plan.name
        stage = _plan_stage(plan, stages[-1] if stages else None, validation, starts, mistakes)
        stages += [stage] if stage else []
    mistakes.stage = ""
    parent = _existing_parent(Path(options.out_dir))
    if not os.access(parent, os.W_OK):
        mistakes.add(f"--out_dir {options.out_dir}: no right to write in {parent}")
    mistakes.refuse()
    checkpoints = list_checkpoints(Path(options.out_dir))
    if checkpoints:
        with suppress(DamagedCheckpoint):  # the job renames it and continues from the one before
            stage_to_continue(checkpoints[-1][1], read_state(checkpoints[-1][1]), stages, data=None)
    return JobPlan(
        options,
        stages,
        first_step=checkpoints[-1][0] if checkpoints else 0,
        n_checkpoints=len(checkpoints),
        free_bytes=shutil.disk_usage(parent).free,
    )


def _plan_stage(
    plan: StageOptions,
    before: StagePlan | None,
    validation: Sequence[TokenStore],
    starts: Starts | None,
    mistakes: _Mistakes,
) -> StagePlan | None:
    """None where something is wrong, which is noted."""
    options, attempt = plan.options, mistakes.attempt
    entries = attempt(lambda: parse_stores(options.train_data_dir)) or []
    stores = [(entry, store) for entry in entries if (store := attempt(partial(TokenStore.open, entry.path)))]
    config = attempt(lambda: resolve_shape(options, _shape_before(options, before)))
    if config is not None and stores:
        every = [*(store for _, store in (*(before.stores if before else ()), *stores)), *validation]
        attempt(partial(_check_tokenizers, every))
        initial = options.initial_checkpoint_dir
        if initial is not None and not list_checkpoints(Path(options.out_dir)):
            attempt(partial(check_tokenizer, Path(initial), stores[0][1]))
        config = attempt(partial(config.with_vocab_of, max(store.vocab_size for store in every)))
        attempt(lambda: config and frozen_rows(options.trainable, config))
    if config is None or not stores or len(stores) < len(entries):
        return None
    for store in validation:
        attempt(partial(check_masked, store, config.block_size, options.packing))
    planned = attempt(partial(_count, plan, before, config, stores, starts))
    if planned is not None:
        chat = next((store.manifest.chat for _, store in stores if store.manifest.chat), None)
        planned.remarks.extend(line.removeprefix("warning: ") for line in template_warnings(chat, validation))
    return planned


def _shape_before(options: TrainOptions, before: StagePlan | None) -> ModelConfig | None:
    return before.config if before else initial_shape(options)


def _check_tokenizers(stores: Sequence[TokenStore]) -> None:
    for other in stores[1:]:
        if other.manifest.tokenizer != stores[0].manifest.tokenizer:
            raise InputError(
                f"{other.path} was made with another tokenizer than {stores[0].path}: a run has one; "
                "tokenize both with the same"
            )


def _count(
    plan: StageOptions,
    before: StagePlan | None,
    config: ModelConfig,
    stores: list[tuple[StoreEntry, TokenStore]],
    starts: Starts | None,
) -> StagePlan:
    """Count a stage's rows, from where the stages before end.

    Raises:
        InputError: a store has no rows, or its weight or the schedule cannot be used.
    """
    options = dataclasses.replace(plan.options, block_size=config.block_size)
    rows = [StoreRows.of(store, entry.share, options) for entry, store in stores]
    sizes = [_size(store, entry, options, config.block_size) for entry, store in stores]
    weights = weights_of([entry for entry, _ in stores])
    start = starts.begin(rows) if starts else None
    of_stores = [np.array([size.rows]) for size in sizes]
    order = SampleOrder(
        of_stores, weights, options.seed, options.shuffle_window, names=[s.name for s in sizes], start=start
    )
    epochs = Epochs(sizes, weights, options.global_batch_size, plan.steps_before, order.start.positions)
    schedule = schedule_of(plan, epochs.rows, before.schedule if before else None)
    length = length_warnings(config, _shape_before(options, before))
    remarks = [warning.removeprefix("warning: ") for warning in length]
    if starts is not None:
        remarks += starts.repeats(rows)
        samples = schedule.max_steps * options.global_batch_size
        starts.end(plan.name, rows, order.positions_after(order.start.first_sample + samples), samples)
    return StagePlan(plan, schedule, config, stores, epochs, remarks)


def _size(store: TokenStore, entry: StoreEntry, options: TrainOptions, block_size: int) -> StoreSize:
    packed = PackedStore.find(store, block_size, options.packing, options.packing_dir, entry.share)
    if packed:
        return StoreSize.of(packed)
    check_masked(store, block_size, options.packing, entry.share)
    size = StoreSize.estimate(store, entry, block_size, options.packing)
    empty = entry.share is not None and not _has_targets(store, entry.share)
    return dataclasses.replace(size, rows=0) if empty else size


def _has_targets(store: TokenStore, share: DocumentShare) -> bool:
    """Whether a document of the share has two tokens; known after one shard, unless the share is tiny."""
    return any(
        (store.in_hash_range(shard, *share.bounds) & (store.lengths(shard) > 1)).any()
        for shard in range(store.n_shards)
    )


def _existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest above it that is there."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing_parent(folder.parent)
