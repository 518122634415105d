"""The trainer's options: flags of the command, keys of its YAML, and every check that needs no model."""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from lit_gpt.errors import InputError
from lit_gpt.option_types import (
    Duration,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    convert_fields,
    parse_duration,
)
from pretrain.schedules import ScheduleName, make_schedule

ProcessCount = Annotated[int, Range(at_least=1, at_most=100_000)]


@dataclass
class DataOptions:
    """Which stores are read, and in what order."""

    train_data_dir: list[str] = field(default_factory=list)
    """Token store(s) to train on: DIR, or several as DIR:WEIGHT; DIR@0-40 takes 40 % of its documents."""
    block_size: PositiveInt = 2048
    """Targets in a row."""
    seed: int = 1337
    """Of the initial weights and of the order of the data."""
    shuffle_window: PositiveInt = 8
    """Shards that are mixed with one another at a time."""
    packing: Literal["best_fit", "concat", "one_per_row"] = "best_fit"
    """How documents are laid into rows."""
    packing_dir: str | None = None
    """Where packings are cached; beside the store when not given."""
    cache_dir: str | None = None
    """Node-local folder to which shards are copied ahead of use."""
    cache_gb: PositiveFloat = 100.0
    """Most that cache_dir may hold, in 10^9 bytes."""


@dataclass
class TrainOptions(DataOptions):
    """Pretrain a Llama-style language model from a token store, and log what it was fed.

    Started again with `--resume auto` it continues exactly from its newest valid checkpoint.
    A step is one optimizer step over `global_batch_size` rows.
    """

    ALTERNATIVES: ClassVar = [("max_steps", "max_epochs")]
    GROUP_TITLE: ClassVar = "Training, as in pretrain/tinyllama_fabric.py"

    out_dir: str = ""
    """Folder of the run: checkpoints, datapoint log, metrics.csv, validation.csv, TensorBoard."""
    val_data_dir: list[str] | None = None
    """Token store(s) to validate on: NAME=DIR, or DIR, which has the folder's name."""
    model_name: str = "LLaMmlein_1B"
    """A shape of lit_gpt/model/config.py or a YAML/JSON file of one's own."""
    block_size: PositiveInt | None = None  # type: ignore[assignment]
    """Targets in a row; the shape's own when not given."""
    rope_base: PositiveFloat | None = None
    """Base of the rotary frequencies ("theta"); the shape's own when not given."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling in Hugging Face's words, `{rope_type: linear, factor: 2.0}`, also llama3 and yarn; the
    shape's own when not given. original_max_position_embeddings is the length of the initial checkpoint."""
    initial_checkpoint_dir: str | None = None
    """Start from these weights (a converted model) with a fresh optimizer: continued pretraining. One
    that --resume finds goes before."""
    resume: str | None = None
    """A checkpoint folder; `true`: the newest in out_dir, an error if none; `auto`: the newest if any."""
    allow_changed_data: bool = False
    """Resume although the data, its packing or its order is not what the checkpoint was trained on."""

    global_batch_size: PositiveInt = 512
    """Rows per optimizer step over all devices."""
    micro_batch_size: PositiveInt = 8
    """Rows per device and forward pass, at most."""
    max_steps: PositiveInt | None = None
    """Optimizer steps of the run; when not given as before (resumed) or 1000."""
    max_epochs: PositiveFloat | None = None
    """In place of max_steps: passes over the data, also a fraction of one."""
    stages: list[dict[str, Any]] | None = None
    """In place of max_steps: stages one after the other, each a table of name, steps and the options that
    differ in it."""
    learning_rate: PositiveFloat = 4e-4
    """Peak learning rate."""
    min_lr: NonNegativeFloat | None = None
    """Learning rate at the end of the decay; a tenth of learning_rate when not given."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up; a tenth of the run, at most 2000, when not given or longer than the run."""
    lr_schedule: ScheduleName = "cosine"
    """Shape after the warm-up; wsd stays at the peak and decays over the last `decay_steps`."""
    decay_steps: PositiveInt | None = None
    """wsd only: steps of the final decay to min_lr, a tenth of max_steps when not given."""
    weight_decay: NonNegativeFloat = 0.1
    """On matrices only; norms are not decayed, nor are matrices of which some rows are frozen."""
    beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    beta2: Share = 0.95
    """AdamW's decay of the second moment."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    trainable: list[str] | None = None
    """Train only these parameters: names, parts of the model, shell patterns (`transformer.h.*.mlp lm_head`);
    of a matrix also rows alone (`transformer.wte[32000:]`, of the new tokens `transformer.wte[new]`). All
    when not given."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA devices if there are any; under SLURM and torchrun there must be."""
    devices: ProcessCount = 1
    """Devices (processes) per node."""
    num_nodes: ProcessCount = 1
    """Nodes of the job."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    """auto: bf16-mixed (fp32 weights, bf16 arithmetic) on CUDA, 32-true on CPU. bf16-true keeps weights and
    moments in bf16."""
    sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD"] = "FULL_SHARD"
    """With more than one device, what FSDP2 splits over them."""
    force_sharding: bool = False
    """Use sharding_strategy, and a process group, with a single device too: to try that path on one GPU."""
    shard_group_size: PositiveInt | None = None
    """HYBRID_SHARD: devices that share one copy of the model; those of a node when not given."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute in the backward pass: every second block, or every block."""
    attention: Literal["auto", "fa3", "fa2", "sdpa"] = "auto"
    """Attention kernel; a choice that cannot work here is refused with the reason."""
    compile: Literal["auto", "true", "false"] = "auto"
    """Compile each block with torch.compile; auto: on CUDA. With SDPA graphs break at attention, and a
    recomputed block is not compiled."""
    float8: bool = False
    """Matrix products of the blocks in float8 (torchao, tensorwise); needs compute capability 8.9."""
    deterministic: bool = False
    """Bitwise repeatable on CUDA too, at some cost in speed. A CPU run always is."""

    log_datapoints: bool = True
    """Write the datapoint log: which documents each step was fed."""
    log_losses: bool = True
    """Log the mean loss of each segment beside it."""
    accept_log_gap: bool = False
    """Resume although files of the datapoint log are lost; the gap is noted in the log."""

    save_step_interval: NonNegativeInt = 1000
    """Steps between checkpoints; one is written at the end in any case. 0: at the end only."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    """sharded: every rank writes its part; full: rank 0 writes one set."""
    keep_last: NonNegativeInt = 3
    """Checkpoints to keep; 0 keeps all."""
    keep_every: NonNegativeInt = 0
    """Keep the checkpoints of every n-th step permanently; 0: none."""
    async_save: bool = True
    """Write checkpoints while training continues."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """Whether the run stops or continues when a checkpoint, log or metrics cannot be written."""
    eval_step_interval: NonNegativeInt = 1000
    """Steps between validations; there is one before the first step and one at the end in any case. 0: only
    these."""
    eval_iters: NonNegativeInt = 100
    """Validate on this many micro-batches' worth of rows (times micro_batch_size), a fixed sample of the
    store; 0: on all of it."""
    log_step_interval: PositiveInt = 10
    """Steps between progress lines; metrics.csv has every step."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (needs the wandb package)."""
    max_time: Duration | None = None
    """Time after which to checkpoint and stop, as before a job's time limit."""
    max_skipped_steps: PositiveInt = 20
    """Stop after this many steps in a row with a gradient that is not finite."""
    watchdog_minutes: NonNegativeFloat = 15.0
    """End the run, with every thread's stack in a file, when no micro-batch ends for so long. Slow ones raise
    the limit, and other phases have multiples of it. 0: never."""

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.devices * self.num_nodes

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 lays the model over the devices, by sharding_strategy."""
        return self.world_size > 1 or self.force_sharding

    @property
    def max_seconds(self) -> float:
        """max_time in seconds, infinite when not given."""
        return math.inf if self.max_time is None else parse_duration(self.max_time)

    def check(self) -> None:
        """Find every mistake that shows without opening data or model.

        Raises:
            InputError: one line that lists all of them.
        """
        fields, mistakes = convert_fields(type(self), vars(self), "--")
        vars(self).update(fields)
        mistakes = mistakes or [message for wrong, message in self._rules() if wrong]
        if mistakes:
            raise InputError("; ".join(mistakes))
        make_schedule(self, None)

    def _rules(self) -> list[tuple[bool, str]]:
        world, rows = self.world_size, self.global_batch_size
        group = self.shard_group_size
        return [
            (not self.train_data_dir, "--train_data_dir is missing: give a token store"),
            (not self.out_dir, "--out_dir is missing: give a folder for the run"),
            (
                rows % world != 0,
                f"--global_batch_size {rows} is not divisible by {world} processes "
                f"(devices x num_nodes); the nearest that are: {nearest_multiples(rows, world)}",
            ),
            (
                self.decay_steps is not None and self.lr_schedule != "wsd",
                f"--decay_steps is for --lr_schedule wsd, not {self.lr_schedule}",
            ),
            (
                self.max_steps is not None and self.max_epochs is not None,
                "--max_steps and --max_epochs both say how long to train: give one of them",
            ),
            (
                group is not None and self.sharding_strategy != "HYBRID_SHARD",
                f"--shard_group_size is for --sharding_strategy HYBRID_SHARD, not {self.sharding_strategy}",
            ),
            (
                group is not None and world % group != 0,
                f"--shard_group_size {group} does not divide the {world} processes",
            ),
            (
                self.resume not in (None, "true", "auto") and not os.path.isdir(str(self.resume)),
                f"--resume {self.resume}: no such folder; give that of a checkpoint, true or auto",
            ),
            (
                self.model_name.endswith((".yaml", ".yml", ".json")) and not os.path.isfile(self.model_name),
                f"--model_name {self.model_name}: no such file",
            ),
        ]

    def to_dict(self) -> dict[str, object]:
        """For config.yaml and state.json."""
        return dataclasses.asdict(self)


def nearest_multiples(number: int, divisor: int) -> str:
    """The multiples of `divisor` on both sides of `number`, for an error message."""
    below = number // divisor * divisor
    return " and ".join(str(value) for value in (below, below + divisor) if value > 0)
