"""The trainer's options: flags of the command, keys of its YAML, and every check that needs no model."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lit_gpt.cli import InputError


@dataclass
class TrainOptions:
    """Pretrain a Llama-style language model from a token store, and log what it was fed.

    Started again with `--resume auto` it goes on exactly where its newest valid checkpoint stands.
    A step is one optimizer step over `global_batch_size` rows.
    """

    train_data_dir: list[str] = field(default_factory=list)
    """Token store(s) to train on: DIR, or several as DIR:WEIGHT."""
    out_dir: str = ""
    """Folder of the run: checkpoints, datapoint log, metrics.csv, TensorBoard."""
    val_data_dir: str | None = None
    """Token store to validate on."""
    model_name: str = "LLaMmlein_1B"
    """A shape of lit_gpt/config.py or a YAML/JSON file of one's own."""
    block_size: int | None = None
    """Predictions in a row; the shape's own when not given."""
    initial_checkpoint_dir: str | None = None
    """Start from these weights (a converted model) with a fresh optimizer: continued pretraining."""
    resume: str | None = None
    """A checkpoint folder; `true`: the newest in out_dir, an error if none; `auto`: the newest if any."""
    allow_changed_data: bool = False
    """Resume although the data, its packing or its order is not what the checkpoint was trained on."""

    global_batch_size: int = 512
    """Rows per optimizer step over all devices."""
    micro_batch_size: int = 8
    """Rows per device and forward pass."""
    max_steps: int = 1000
    """Optimizer steps in the whole run."""
    learning_rate: float = 4e-4
    """Peak learning rate."""
    min_lr: float = 4e-5
    """Learning rate at the end of the decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    lr_schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """Shape after the warm-up; wsd stays at the peak and decays over the last `decay_steps`."""
    decay_steps: int | None = None
    """wsd only: steps of the final decay to min_lr, a tenth of max_steps when not given."""
    weight_decay: float = 0.1
    """On matrices only; norms are not decayed."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    seed: int = 1337
    """Of the initial weights and of the order of the data."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA devices if there are any."""
    devices: int = 1
    """Devices (processes) per node."""
    num_nodes: int = 1
    """Nodes of the job."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    """auto: bf16-mixed (fp32 weights, bf16 arithmetic) on CUDA, 32-true on CPU. bf16-true keeps weights and
    moments in bf16."""
    sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD"] = "FULL_SHARD"
    """With more than one device, what FSDP2 splits over them."""
    shard_group_size: int | None = None
    """HYBRID_SHARD: devices that share one copy of the model; those of a node when not given."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute in the backward pass: every second block, or every block."""
    attention: Literal["auto", "fa3", "fa2", "sdpa"] = "auto"
    """Attention kernel; a choice that cannot work here is refused with the reason."""
    compile: Literal["auto", "true", "false"] = "auto"
    """Compile each block with torch.compile; auto: on CUDA."""
    float8: bool = False
    """Matrix products of the blocks in float8 (torchao, tensorwise); needs compute capability 8.9."""
    deterministic: bool = False
    """Bitwise repeatable on CUDA too, at some cost in speed. A CPU run always is."""

    shuffle_window: int = 8
    """Shards that are mixed with one another at a time."""
    packing: Literal["best_fit", "concat", "one_per_row"] = "best_fit"
    """How documents are laid into rows."""
    packing_dir: str | None = None
    """Where packings are cached; beside the store when not given."""
    cache_dir: str | None = None
    """Node-local folder to which shards are copied ahead of use."""
    cache_gb: float = 100.0
    """Most that cache_dir may hold, in 10^9 bytes."""
    log_datapoints: bool = True
    """Write the datapoint log: which documents each step was fed."""

    save_step_interval: int = 1000
    """Steps between checkpoints; one is written at the end in any case. 0: at the end only."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    """sharded: every rank writes its part; full: rank 0 writes one set."""
    keep_last: int = 3
    """Checkpoints to keep; 0 keeps all."""
    keep_every: int = 0
    """Keep the checkpoints of every n-th step for ever; 0: none."""
    async_save: bool = True
    """Write checkpoints while training goes on."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What a checkpoint that could not be written does to the run."""
    eval_step_interval: int = 1000
    """Steps between validations."""
    eval_iters: int = 100
    """Validate on this many micro-batches' worth of rows (times micro_batch_size), a fixed sample of the
    store; 0: on all of it."""
    log_step_interval: int = 10
    """Steps between progress lines; metrics.csv has every step."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (needs the wandb package)."""
    max_time: str | None = None
    """HH:MM:SS after which to checkpoint and stop, as before a job's time limit."""
    max_skipped_steps: int = 20
    """Stop after this many steps in a row with a gradient that is not finite."""
    watchdog_minutes: float = 15.0
    """Stop a process, with the stack of every thread in a file, when no step ends for so long. 0: never."""

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.devices * self.num_nodes

    @property
    def max_seconds(self) -> float:
        """max_time in seconds, infinite when not given."""
        return math.inf if self.max_time is None else parse_duration(self.max_time)

    def check(self) -> None:
        """Find every mistake that shows without opening data or model.

        Raises:
            InputError: one line that lists all of them.
        """
        mistakes = [message for wrong, message in self._rules() if wrong]
        if self.max_time is not None:
            try:
                parse_duration(self.max_time)
            except InputError as error:
                mistakes.append(str(error))
        if mistakes:
            raise InputError("; ".join(mistakes))

    def _rules(self) -> list[tuple[bool, str]]:
        world, rows, micro = self.world_size, self.global_batch_size, self.micro_batch_size
        group = self.shard_group_size
        positive = [
            "global_batch_size", "micro_batch_size", "max_steps", "devices", "num_nodes", "shuffle_window",
            "log_step_interval", "max_skipped_steps", "learning_rate", "cache_gb",
        ]  # fmt: skip
        not_negative = [
            "min_lr", "warmup_steps", "weight_decay", "grad_clip", "save_step_interval", "eval_step_interval",
            "eval_iters", "keep_last", "keep_every", "watchdog_minutes",
        ]  # fmt: skip
        return [
            (not self.train_data_dir, "--train_data_dir is missing: give a token store"),
            (not self.out_dir, "--out_dir is missing: give a folder for the run"),
            *((getattr(self, name) <= 0, f"--{name} must be above 0") for name in positive),
            *((getattr(self, name) < 0, f"--{name} must not be negative") for name in not_negative),
            (
                world > 0 and rows > 0 and rows % world != 0,
                f"--global_batch_size {rows} is not divisible by {world} processes "
                f"(devices x num_nodes); the nearest that are: {nearest_multiples(rows, world)}",
            ),
            (
                world > 0 and micro > 0 and rows % world == 0 and micro > rows // world > 0,
                f"--micro_batch_size {micro} is larger than a process's share of the global batch, "
                f"{rows // max(world, 1)}",
            ),
            (
                self.min_lr > self.learning_rate,
                f"--min_lr {self.min_lr} is above --learning_rate {self.learning_rate}",
            ),
            (
                self.warmup_steps > self.max_steps,
                f"--warmup_steps {self.warmup_steps} is more than --max_steps {self.max_steps}",
            ),
            (not 0 <= self.beta1 < 1, f"--beta1 {self.beta1} must be in [0, 1)"),
            (not 0 <= self.beta2 < 1, f"--beta2 {self.beta2} must be in [0, 1)"),
            (
                self.decay_steps is not None and self.lr_schedule != "wsd",
                f"--decay_steps is for --lr_schedule wsd, not {self.lr_schedule}",
            ),
            (
                self.decay_steps is not None
                and not 0 < self.decay_steps <= self.max_steps - self.warmup_steps,
                f"--decay_steps {self.decay_steps} must lie between 1 and max_steps - warmup_steps",
            ),
            (
                group is not None and self.sharding_strategy != "HYBRID_SHARD",
                f"--shard_group_size is for --sharding_strategy HYBRID_SHARD, not {self.sharding_strategy}",
            ),
            (
                group is not None and (group < 1 or world % group != 0),
                f"--shard_group_size {group} does not divide the {world} processes",
            ),
            (
                self.initial_checkpoint_dir is not None and self.resume not in (None, "auto"),
                "--initial_checkpoint_dir starts a run and --resume continues one: give one of them",
            ),
            (
                self.resume not in (None, "true", "auto") and not Path(str(self.resume)).is_dir(),
                f"--resume {self.resume}: no such folder; give that of a checkpoint, true or auto",
            ),
            (
                self.model_name.endswith((".yaml", ".yml", ".json")) and not Path(self.model_name).is_file(),
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


def parse_duration(text: str) -> float:
    """Seconds of `HH:MM:SS`, `MM:SS` or SLURM's `D-HH:MM:SS`.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        raise InputError(f"--max_time {text}: write HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
