"""What a training will need and do, stage by stage: steps, memory, disk, hours."""

from collections.abc import Iterable
from dataclasses import dataclass

from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.rows.store_entry import StoreEntry
from lit_gpt.store.token_store import TokenStore
from pretrain.launch.memory import MemoryEstimate, checkpoint_bytes, estimate_memory, shards
from pretrain.monitor.epochs import Epochs
from pretrain.options import TrainOptions
from pretrain.stages.options import PlannedStage

GIB = 2**30
COLUMNS = ("stage", "steps", "rows a step", "tokens", "epochs", "hours", "learning rate")
ON_THE_LEFT = ("stage", "learning rate")


@dataclass(frozen=True)
class StagePlan(PlannedStage):
    """What one stage works on; a run without stages is one."""

    config: ModelConfig
    stores: list[tuple[StoreEntry, TokenStore]]
    epochs: Epochs
    remarks: list[str]
    """Warnings about its shape and about documents that stages before it read."""

    @property
    def tokens_per_step(self) -> int:
        """Slots in a step's rows."""
        return self.options.global_batch_size * self.config.block_size

    def tokens_left(self, first_step: int) -> int:
        """Slots of its steps after that step of the run."""
        steps_done = max(first_step - self.steps_before, 0)
        return max(self.schedule.max_steps - steps_done, 0) * self.tokens_per_step

    def estimate(self, device_gib: float) -> MemoryEstimate:
        """Memory of a step."""
        full_precision = self.options.accelerator == "cpu" or self.options.precision == "32-true"
        return estimate_memory(
            self.options, self.config, compute_bytes=4 if full_precision else 2, device_bytes=device_gib * GIB
        )

    def lines(self) -> list[tuple[str, str]]:
        """In words, for a run that consists of it."""
        n_tokens = round(sum(entry.fraction * store.n_tokens for entry, store in self.stores))
        n_documents = round(sum(entry.fraction * store.n_documents for entry, store in self.stores))
        return [
            ("data", f"{len(self.stores)} store(s), {n_documents:,} documents, {n_tokens:,} tokens"),
            ("steps", self.epochs.length(self.schedule.max_steps)),
            ("rate", self.schedule.describe(self.options)),
        ]

    def cells(self, hours: str) -> list[str]:
        """Its line of the table. Epochs are by store, with what the stages before read of the same rows."""
        steps = self.schedule.max_steps
        return [
            self.name,
            f"{self.steps_before + 1:,}-{self.schedule.last_step:,}",
            f"{self.options.global_batch_size:,} x {self.config.block_size:,}",
            f"{self.epochs.tokens(steps):,}",
            "/".join(f"{passed:.2f}" for passed in self.epochs.passes(steps)),
            hours,
            self.schedule.describe(self.options).removeprefix("learning rate: "),
        ]

    def warnings(self) -> list[str]:
        """What is out of proportion, or read again."""
        stage = f"stage {self.name}: " if self.name else ""
        found = [*self.remarks, *self.epochs.warnings(self.schedule.max_steps)]
        return [f"{stage}{warning}" for warning in found]


@dataclass(frozen=True)
class JobPlan:
    """A training whose options, data and folder were found to fit together."""

    options: TrainOptions
    stages: list[StagePlan]
    first_step: int
    """Steps that checkpoints in `out_dir` have behind them."""
    n_checkpoints: int
    """Checkpoints that `out_dir` holds."""
    free_bytes: int
    """Of the file system of `out_dir`."""

    @property
    def has_stages(self) -> bool:
        """Whether the options list stages."""
        return bool(self.stages[0].name)

    @property
    def checkpoints_kept(self) -> int:
        """The most there are at a time: those that stay, borders among them, and the one being written."""
        options = self.options
        written = sum(_saves(stage, stage is self.stages[-1]) for stage in self.stages)
        last_step = self.stages[-1].schedule.last_step
        forever = last_step // options.keep_every if options.keep_every else 0
        forever += len(self.stages) - 1
        return min(written, (options.keep_last or written) + forever + 1)

    @property
    def longest(self) -> StagePlan:
        """The stage with most left to train: its speed decides the hours."""
        return max(self.stages, key=lambda stage: stage.tokens_left(self.first_step))

    def hours(self, tokens_per_second: float) -> list[float]:
        """Left to train, of each stage, at the given speed of one device."""
        tokens_per_hour = tokens_per_second * self.options.world_size * 3600
        return [stage.tokens_left(self.first_step) / tokens_per_hour for stage in self.stages]

    def lines(self, device_gib: float) -> list[tuple[str, str]]:
        """What holds for the whole run, in words: (what, how much).

        Raises:
            InputError: it needs more memory than `device_gib`, or more disk than there is.
        """
        options, config = self.options, self.stages[0].config
        start = f"continues at step {self.first_step + 1}" if self.first_step else "starts at step 1"
        if self.first_step and self.has_stages:
            rest = [stage for stage in self.stages if stage.schedule.last_step > self.first_step]
            start += f", stage {rest[0].name}" if rest else ": all stages are done"
        rows = _each(stage.options.global_batch_size // options.world_size for stage in self.stages)
        return [
            ("run", f"{options.out_dir}, {start}"),
            (
                "model",
                f"{config.name}: {config.n_parameters:,} parameters, vocabulary {config.vocab_rows}, "
                f"rows of {_each(stage.config.block_size for stage in self.stages)}",
            ),
            *([] if self.has_stages else self.stages[0].lines()),
            (
                "job",
                f"{options.num_nodes} node(s) of {options.devices} device(s), weights split over "
                f"{shards(options)}; {rows} row(s) a step and device, "
                f"{_each(stage.options.micro_batch_size for stage in self.stages)} at a time",
            ),
            ("memory", self._memory(device_gib)),
            ("disk", self._disk()),
        ]

    def table(self, tokens_per_second: float | None) -> list[str]:
        """A line a stage and their sums, aligned; hours where the speed of one device is known."""
        if not self.has_stages:
            return []
        hours = [] if tokens_per_second is None else self.hours(tokens_per_second)
        shown = (
            [f"{number:.1f}" for number in (*hours, sum(hours))] if hours else [""] * (len(self.stages) + 1)
        )
        tokens = sum(stage.epochs.tokens(stage.schedule.max_steps) for stage in self.stages)
        lines = [
            COLUMNS,
            *(stage.cells(of_stage) for stage, of_stage in zip(self.stages, shown, strict=False)),
            ("total", f"1-{self.stages[-1].schedule.last_step:,}", "", f"{tokens:,}", "", shown[-1], ""),
        ]
        columns = [
            [cell.ljust(width) if column[0] in ON_THE_LEFT else cell.rjust(width) for cell in column]
            for column in zip(*lines, strict=True)
            if (width := max(map(len, column))) and (column[0] != "hours" or hours)
        ]
        return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]

    def warnings(self) -> list[tuple[str, str]]:
        """Of all stages, as `lines`."""
        return [("warning", warning) for stage in self.stages for warning in stage.warnings()]

    def _memory(self, device_gib: float) -> str:
        stage = max(self.stages, key=lambda stage: stage.estimate(device_gib).total)
        estimate = stage.estimate(device_gib)
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in vars(estimate).items())
        where = f", in stage {stage.name}" if stage.name else ""
        text = f"about {estimate.total / GIB:.1f} GiB a device ({parts}){where}"
        if self.options.accelerator != "cpu" and estimate.total > 1.25 * device_gib * GIB:
            raise InputError(
                f"memory: {text}, but a device has {device_gib:g} (--device_memory); lower "
                "--micro_batch_size, use --activation_checkpointing or split the weights over more devices"
            )
        return text

    def _disk(self) -> str:
        size = max(checkpoint_bytes(stage.options, stage.config) for stage in self.stages)
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


def _saves(stage: StagePlan, is_last: bool) -> int:
    """Checkpoints that a stage writes: intervals count steps of the run. The last may be stopped once."""
    last_step = stage.schedule.last_step
    interval = stage.options.save_step_interval or last_step
    at_the_end = 1 if is_last or last_step % interval else 0
    return last_step // interval - stage.steps_before // interval + at_the_end


def _each(numbers: Iterable[int]) -> str:
    """Of the stages in their order, each number once."""
    return "/".join(dict.fromkeys(map(str, numbers)))
