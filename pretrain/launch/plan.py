"""What a training will need and do, found out without a device: data, steps, memory, disk, hours."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import matmul_parameters
from lit_gpt.model.loss import cuda_chunk_tokens
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.store_entry import StoreEntry, parse_stores, weights_of
from lit_gpt.store.token_store import TokenStore
from pretrain.data.validation import named_stores
from pretrain.monitor.epochs import Epochs, StoreSize
from pretrain.options import TrainOptions
from pretrain.schedules import Schedule, make_schedule
from pretrain.shape import initial_shape, resolve_shape
from pretrain.trainable import frozen_rows, n_trained

GIB = 2**30
T = TypeVar("T")


@dataclass(frozen=True)
class JobPlan:
    """A training whose options, data and folder were found to fit together."""

    options: TrainOptions
    config: ModelConfig
    stores: list[tuple[StoreEntry, TokenStore]]
    epochs: Epochs
    schedule: Schedule
    first_step: int
    """Steps that checkpoints in `out_dir` have behind them."""
    n_checkpoints: int
    """Checkpoints that `out_dir` holds."""
    free_bytes: int
    """Of the file system of `out_dir`."""

    @property
    def tokens_per_step(self) -> int:
        """Slots in a step's rows."""
        return self.options.global_batch_size * self.config.block_size

    @property
    def checkpoints_kept(self) -> int:
        """The most there are at a time: those that stay, and the one being written."""
        options, max_steps = self.options, self.schedule.max_steps
        written = max_steps // (options.save_step_interval or max_steps) + 1
        forever = max_steps // options.keep_every if options.keep_every else 0
        return min(written, (options.keep_last or written) + forever + 1)

    def hours(self, tokens_per_second: float) -> float:
        """Left to train, at the given speed of one device."""
        tokens = (self.schedule.max_steps - self.first_step) * self.tokens_per_step
        return tokens / (tokens_per_second * self.options.world_size) / 3600

    def lines(self, device_gib: float) -> list[tuple[str, str]]:
        """The plan in words: (what, how much).

        Raises:
            InputError: it needs more memory than `device_gib`, or more disk than there is.
        """
        options, config = self.options, self.config
        start = f"continues at step {self.first_step + 1}" if self.first_step else "starts at step 1"
        n_tokens = round(sum(entry.fraction * store.n_tokens for entry, store in self.stores))
        n_documents = round(sum(entry.fraction * store.n_documents for entry, store in self.stores))
        rows = options.global_batch_size // options.world_size
        return [
            ("run", f"{options.out_dir}, {start}"),
            (
                "model",
                f"{config.name}: {config.n_parameters:,} parameters, vocabulary {config.vocab_rows}, "
                f"rows of {config.block_size}",
            ),
            ("data", f"{len(self.stores)} store(s), {n_documents:,} documents, {n_tokens:,} tokens"),
            ("steps", self.epochs.length(self.schedule.max_steps)),
            ("rate", self.schedule.describe(options)),
            (
                "job",
                f"{options.num_nodes} node(s) of {options.devices} device(s), weights split over "
                f"{shards(options)}; {rows} row(s) a step and device, {options.micro_batch_size} at a time",
            ),
            ("memory", self._memory(device_gib)),
            ("disk", self._disk()),
            *(("warning", warning) for warning in self.epochs.warnings(self.schedule.max_steps)),
        ]

    def _memory(self, device_gib: float) -> str:
        full_precision = self.options.accelerator == "cpu" or self.options.precision == "32-true"
        estimate = estimate_memory(
            self.options, self.config, compute_bytes=4 if full_precision else 2, device_bytes=device_gib * GIB
        )
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in vars(estimate).items())
        text = f"about {estimate.total / GIB:.1f} GiB a device ({parts})"
        if self.options.accelerator != "cpu" and estimate.total > 1.25 * device_gib * GIB:
            raise InputError(
                f"memory: {text}, but a device has {device_gib:g} (--device_memory); lower "
                "--micro_batch_size, use --activation_checkpointing or split the weights over more devices"
            )
        return text

    def _disk(self) -> str:
        size = checkpoint_bytes(self.options, self.config)
        needed = max(self.checkpoints_kept - self.n_checkpoints, 1) * size
        text = (
            f"{self.checkpoints_kept} checkpoint(s) of {size / GIB:.2f} GiB at a time, "
            f"{needed / GIB:.2f} GiB to come, {self.free_bytes / GIB:.1f} free"
        )
        if needed > self.free_bytes:
            raise InputError(
                f"disk: {text} in {self.options.out_dir}; make room, lower --keep_last or raise --keep_every"
            )
        return text


def examine(options: TrainOptions) -> JobPlan:
    """Open everything the job will open, as far as that needs no device.

    Raises:
        InputError: all that was found wrong, in one line.
    """
    mistakes: list[str] = []

    def attempt(look: Callable[[], T]) -> T | None:
        try:
            return look()
        except InputError as error:
            mistakes.append(str(error))
            return None

    attempt(options.check)
    if options.resume not in (None, "auto"):
        mistakes.append(
            f"--resume {options.resume}: a job continues from its newest checkpoint; leave it out"
        )
    entries = attempt(lambda: parse_stores(options.train_data_dir)) or []
    stores = [(entry, store) for entry in entries if (store := attempt(partial(TokenStore.open, entry.path)))]
    named = attempt(lambda: named_stores(options.val_data_dir or [])) or {}
    validation = [store for path in named.values() if (store := attempt(partial(TokenStore.open, path)))]
    config = attempt(lambda: resolve_shape(options, initial_shape(options)))
    if config is not None and stores:
        vocab_size = max(store.vocab_size for store in [*(store for _, store in stores), *validation])
        config = attempt(partial(config.with_vocab_of, vocab_size))
        attempt(lambda: config and frozen_rows(options.trainable, config))
    parent = _existing_parent(Path(options.out_dir))
    if not os.access(parent, os.W_OK):
        mistakes.append(f"--out_dir {options.out_dir}: no right to write in {parent}")
    if mistakes or config is None:
        raise InputError("; ".join(mistakes))
    checkpoints = list_checkpoints(Path(options.out_dir))
    sizes = [_size(store, entry, options, config.block_size) for entry, store in stores]
    epochs = Epochs(sizes, weights_of(entries), options.global_batch_size)
    return JobPlan(
        options,
        config,
        stores,
        epochs,
        make_schedule(options, epochs.rows),
        first_step=checkpoints[-1][0] if checkpoints else 0,
        n_checkpoints=len(checkpoints),
        free_bytes=shutil.disk_usage(parent).free,
    )


def _size(store: TokenStore, entry: StoreEntry, options: TrainOptions, block_size: int) -> StoreSize:
    packed = PackedStore.find(store, block_size, options.packing, options.packing_dir, entry.share)
    return StoreSize.of(packed) if packed else StoreSize.estimate(store, entry, block_size, options.packing)


def _existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest above it that is there."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing_parent(folder.parent)


# ---- memory, by arithmetic: an estimate, good to about a fifth


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at the peak of a step."""

    state: int
    """Weights, gradients and AdamW's two moments, as far as they lie on this device."""
    unsharded: int
    """Copies of weights in the compute dtype: all of them, or two blocks, the embedding and the head."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    head: int
    """Logits of a chunk and the gradients that the loss makes."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.unsharded + self.activations + self.head


def estimate_memory(
    options: TrainOptions, config: ModelConfig, compute_bytes: int = 2, device_bytes: float = 80e9
) -> MemoryEstimate:
    """Add up a compiled step's memory.

    Args:
        options: precision, sharding, micro-batch and checkpointing count.
        config: With its vocabulary known.
        compute_bytes: Of a number in matrix products: 2 for bf16, 4 for 32-true.
        device_bytes: Memory of a device, which the chunks of the loss go by.
    """
    master_bytes = 2 if options.precision == "bf16-true" else 4
    n_parameters = config.n_parameters
    trained = n_trained(frozen_rows(options.trainable, config), config)
    block = (matmul_parameters(config) - config.vocab_rows * config.n_embd) // config.n_layer
    head = config.vocab_rows * config.n_embd
    weights_are_in_compute_dtype = not options.sharded and master_bytes == compute_bytes
    whole_weights = not options.sharded or options.sharding_strategy in ("NO_SHARD", "SHARD_GRAD_OP")
    rows = min(options.micro_batch_size, options.global_batch_size // options.world_size)
    tokens = rows * config.block_size
    return MemoryEstimate(
        state=master_bytes * (n_parameters + 3 * trained) // shards(options),
        unsharded=0
        if weights_are_in_compute_dtype
        else compute_bytes
        * (n_parameters if whole_weights else 2 * block + (1 if config.tie_embeddings else 2) * head),
        activations=tokens * compute_bytes * _kept_per_token(options, config),
        # A logit, its gradient, and log-softmax, softmax and one-hot in fp32; then the head's gradient.
        head=min(tokens, cuda_chunk_tokens(device_bytes)) * config.vocab_rows * (2 * compute_bytes + 12)
        + 4 * head,
    )


def shards(options: TrainOptions) -> int:
    """Over how many devices each weight is split."""
    if options.sharding_strategy == "NO_SHARD":
        return 1
    if options.sharding_strategy == "HYBRID_SHARD":
        return options.shard_group_size or options.devices
    return options.world_size


def checkpoint_bytes(options: TrainOptions, config: ModelConfig) -> int:
    """Of one checkpoint: weights, and two moments of what is trained."""
    numbers = config.n_parameters + 2 * n_trained(frozen_rows(options.trainable, config), config)
    return (2 if options.precision == "bf16-true" else 4) * numbers


def _kept_per_token(options: TrainOptions, config: ModelConfig) -> int:
    """Numbers that stay for the backward pass, per token, over all blocks.

    A block keeps its input, the input of its MLP half, both norms' outputs, the joint projection (the values
    are a view of it), rotated queries and keys, what attention gives, gate, up and their product. Of a
    recomputed block its input stays, and of one at a time everything.
    """
    queries, keys = config.n_head * config.head_dim, config.n_query_groups * config.head_dim
    attention = config.qkv_rows + queries + keys + queries
    block = 4 * config.n_embd + attention + 3 * config.intermediate_size
    recomputed = {"none": 0, "selective": config.n_layer // 2, "full": config.n_layer}
    n_recomputed = recomputed[options.activation_checkpointing]
    at_a_time = block if n_recomputed else 0
    return (config.n_layer - n_recomputed) * block + n_recomputed * config.n_embd + at_a_time
