"""A run, opened step by step: everything that the training loop works with.

    once        join -> read data -> connect -> choose kernels -> find checkpoint
    each stage  build model -> resume -> open logs

A run without stages is one stage. At a border the next stage is built from the checkpoint of the last step,
by the same code that resumes a run: an interrupted run and an uninterrupted one take one path.
"""

from pathlib import Path
from typing import Any

from lit_gpt.checkpoint.folder import read_state
from pretrain import parallel, trainable
from pretrain.checkpoint.checkpointer import Checkpointer
from pretrain.checkpoint.collective import Ranks
from pretrain.data.dataloader import DataLoader, check_resumable
from pretrain.data.validation import Validation, template_warnings
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.log import DatapointLog
from pretrain.kernels import choose_kernels
from pretrain.launch import run_folder
from pretrain.launch.preflight import connect, join, preflight
from pretrain.launch.roll_call import RollCall
from pretrain.launch.stop import StopAgreement
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.metrics import MetricsWriter, ProgressLine
from pretrain.monitor.save_errors import SaveErrors
from pretrain.monitor.step_reporter import SpeedMonitor, StepReporter
from pretrain.optim import build_optimizer
from pretrain.options import TrainOptions
from pretrain.origins import recorded
from pretrain.schedules import keep_schedule
from pretrain.shape import initial_shape, length_warnings
from pretrain.stages.options import resolve_stages
from pretrain.stages.resume import stage_to_continue
from pretrain.stages.stage import Stage, open_stages

MAY_CHANGE = {"block_size", "rope_base", "rope_scaling"}  # of the shape, from stage to stage
OF_A_STAGE = ("betas", "weight_decay")  # of the optimizer's parameter groups


class Run:
    """One run before its next step. Making it is collective over the ranks."""

    def __init__(self, options: TrainOptions, watchdog: Watchdog) -> None:
        self.options = options
        self.out_dir = Path(options.out_dir)
        self.watchdog = watchdog
        self.stop_request = watchdog.stop_request
        self.step = self.tokens = 0
        self.startup_lines: list[str] = []
        self.stop_request.limit(options.max_seconds)
        watchdog.limit(options.watchdog_minutes, self.out_dir)
        roll_call = join(options, watchdog)
        self._read_data()
        self._connect(roll_call)
        self._choose_kernels()
        self._build_stage(self._find_checkpoint())
        self._open_reports()
        self._open_logs()

    def _read_data(self) -> None:
        """Before the ranks are connected: packing may take hours, and no collective is to wait for it."""
        self.watchdog.phase("reading the data")
        self.stages = open_stages(resolve_stages(self.options))
        self.extension, self.chat_before = (recorded(self.options, name) for name in ("extension", "chat"))

    @property
    def last_step(self) -> int:
        """Of the whole run."""
        return self.stages[-1].schedule.last_step

    def _connect(self, roll_call: RollCall | None) -> None:
        """Make the process group, claim the run's folder, and check devices, folders and network."""
        options = self.options
        connect(roll_call, parallel.resolve_accelerator(options.accelerator))
        self.watchdog.phase("checking devices and network")
        self.fabric = parallel.launch(options)
        self.device, self.rank = self.fabric.device, self.fabric.global_rank
        self.world_size = self.fabric.world_size
        # The other ranks wait for it in the pre-flight.
        self.run_lock = run_folder.prepare(options) if self.rank == 0 else None
        self.watchdog.before_stopping = self._mark_stopped  # the markers of the start before are gone now
        stores = [packed for stage in self.stages for packed in stage.stores]
        self.startup_lines += preflight(roll_call, self.fabric, stores, self.out_dir)
        self.agreement = StopAgreement(self.stop_request, parallel.new_gloo_group())
        self.node_group = parallel.new_node_group(options.devices, self.fabric.node_rank)
        for store in {str(packed.store.path): packed.store for packed in stores}.values():
            if not store.masked:  # a conversation's template says how it begins and ends
                self.startup_lines += store.document_ends.warnings(store.path)

    def _choose_kernels(self) -> None:
        """Before a checkpoint is verified, which takes minutes for 7B: what cannot work here is refused."""
        precision = parallel.resolve_precision(self.options.precision, self.device.type)
        head_dim = self.stages[0].config.head_dim
        self.startup_lines += choose_kernels(self.options, self.device, precision, head_dim)

    def _find_checkpoint(self) -> Stage:
        """Before weights are drawn: that takes minutes for 7B, and resuming would throw them away.

        Returns:
            The stage to begin or to continue.
        """
        self.watchdog.phase("verifying and loading a checkpoint")
        self.errors = SaveErrors(self.options.on_save_error, self.rank)
        ranks = Ranks(parallel.new_gloo_group(), self.rank, self.world_size)
        borders = {stage.schedule.last_step for stage in self.stages[:-1]}
        self.checkpointer = Checkpointer(self.options, ranks, self.errors, borders)
        self.found = self.checkpointer.find(self.options.resume) if self.options.resume else None
        if self.found is None:
            return self.stages[0]
        state = read_state(self.found)
        data = None if self.options.allow_changed_data else [stage.data for stage in self.stages]
        return stage_to_continue(self.found, state, self.stages, data)

    def _build_stage(self, stage: Stage) -> None:
        """Model and optimizer of a stage, from the checkpoint that was found or from the run's first step."""
        self.stage, self.options = stage, stage.options
        self.data, self.config, self.epochs, self.schedule = (
            stage.data,
            stage.config,
            stage.epochs,
            stage.schedule,
        )
        self.validation = self._open_validation()
        self._build_model()
        self._resume()

    def _open_validation(self) -> Validation | None:
        if not self.stage.validation:
            return None
        world = (self.rank, self.world_size, self.device)
        # As many rows in every stage, whatever its micro_batch_size: else losses jump at a border.
        validation = Validation(self.stage.validation, self.options, *world, self.stages[0].options)
        if self.rank == 0:
            self.startup_lines += validation.describe()
            stores = [packed.store for packed in self.stage.validation.values()]
            self.startup_lines += template_warnings(self.data.chat, stores)
        return validation

    def _build_model(self) -> None:
        """With drawn weights, unless others are loaded into it next."""
        options = self.options
        self.watchdog.phase("building the model")
        draw_weights = self.found is None and options.initial_checkpoint_dir is None
        self.model = parallel.build_model(self.fabric, options, self.config, draw_weights)
        frozen = trainable.frozen_rows(options.trainable, self.config)
        self.partly_frozen = trainable.partly_frozen(self.model, frozen)
        self.optimizer = build_optimizer(
            self.model,
            options.learning_rate,
            options.weight_decay,
            options.beta1,
            options.beta2,
            undecayed=[parameter for parameter, _ in self.partly_frozen],
        )
        self.checkpointer.reserve(self.model, self.optimizer)
        self.startup_lines.append(
            f"model {self.config.name}: {self.config.n_parameters:,} parameters, vocabulary "
            f"{self.config.vocab_size}, rows of {self.config.block_size}"
        )
        self.startup_lines += trainable.describe(frozen, self.config)
        number = self.stage.plan.number
        before = self.stages[number - 1].config if number else initial_shape(options)
        self.startup_lines += length_warnings(self.config, before)

    def _resume(self) -> None:
        """Load the checkpoint that was found, or the weights to start from, if any."""
        self.watchdog.phase("verifying and loading a checkpoint")
        initial = self.options.initial_checkpoint_dir
        self.was_logged = False
        if self.found is not None:
            start = self._load(self.found)
        elif initial is not None:
            self.checkpointer.load(Path(initial), self.model, None)
            start = f"weights from {initial}, fresh optimizer"
        else:
            start = "starting at step 1"
        self.startup_lines += [start, *self.epochs.describe(self.schedule.max_steps)]
        self.startup_lines += [self.schedule.describe(self.options), *self.stage.describe()]

    def _load(self, folder: Path) -> str:
        """Continue from a checkpoint of this run; at a border it is of the stage before.

        Returns:
            What was done, in words.
        """
        stage, state = self.stage, read_state(folder)
        begins = state["step"] == stage.steps_before and stage.steps_before > 0
        fresh = begins and stage.plan.fresh_optimizer
        if not begins:
            saved = state.get("options", {}).get("trainable")
            trainable.check_unchanged(saved, self.options.trainable, self.config)
        own = [{name: group[name] for name in OF_A_STAGE} for group in self.optimizer.param_groups]
        self.checkpointer.load(folder, self.model, self.optimizer, self._identity(begins), fresh)
        if begins:  # the checkpoint has those of the stage before
            for group, values in zip(self.optimizer.param_groups, own, strict=True):
                group.update(values)
        if not begins:
            check_resumable(state["data"], self.data, self.options.allow_changed_data)
        if not stage.name:  # the steps of stages are always given
            self.stage = stage.with_options(keep_schedule(self.options, state.get("options", {})))
            self.stages = [self.stage]
            self.options, self.schedule = self.stage.options, self.stage.schedule
        self.step, self.tokens = state["step"], state["tokens"]
        is_own = folder.resolve().parent == self.out_dir.resolve()
        self.was_logged = is_own and state.get("options", {}).get("log_datapoints", False)
        if begins:
            moments = "fresh optimizer" if fresh else "optimizer kept"
            return f"stage {stage.name} begins after step {self.step} with {folder}, {moments}"
        return (
            f"resumed from {folder} at step {self.step}, {self.epochs.now(self.step)}, "
            f"{self.tokens:,} tokens seen"
        )

    def _open_reports(self) -> None:
        """What all stages report to, from the step after the one resumed from."""
        self.metrics: MetricsWriter | None = None
        self.checkpointer.ranks.first(self._open_metrics)
        self.progress = ProgressLine(self.step + 1, self.last_step, enabled=self.rank == 0)

    def _open_metrics(self) -> None:
        begun = [stage.name for stage in self.stages if stage.steps_before < self.step]
        wandb_project = self.options.wandb_project
        self.metrics = MetricsWriter(self.out_dir, self.step + 1, wandb_project, self.errors, begun)

    def _open_logs(self) -> None:
        """The loader of a stage and its datapoint log."""
        self.loader = DataLoader(
            self.data,
            numbering=self.stage.numbering,
            micro_batch_size=self.options.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            first_step=self.step + 1,
        )
        self.datapoint_log = self._open_datapoint_log()
        self.speed = SpeedMonitor(self.config, self.device, self.world_size)
        self.reporter = StepReporter(
            self.rank,
            self.data,
            self.epochs,
            self.schedule,
            self.speed,
            self.metrics,
            self.progress,
            self.options.max_skipped_steps,
        )

    def _open_datapoint_log(self) -> DatapointLog | None:
        first, options = self.checkpointer.ranks.first, self.options
        if not options.log_datapoints:
            first(lambda: datapoint_files.discard_after(self.out_dir / "datapoints", self.step))
            return None
        log = DatapointLog(
            self.out_dir,
            self.data.describe(),
            stage=self.stage.name,
            numbering=self.stage.numbering,
            rank=self.rank,
            local_rank=self.fabric.local_rank,
            node_rank=self.fabric.node_rank,
            node_group=self.node_group,
            with_losses=options.log_losses,
        )
        first(lambda: log.discard_after(self.step, self.was_logged, options.accept_log_gap))
        return log

    def _identity(self, begins: bool = False) -> dict[str, Any]:
        """What a checkpoint must share with this stage: less if it only begins from it."""
        may_differ = {"name"} | (MAY_CHANGE if begins else set())
        shape = {name: value for name, value in self.config.to_dict().items() if name not in may_differ}
        return {"model": shape} | ({} if begins else {"global_batch_size": self.options.global_batch_size})

    def _mark_stopped(self) -> None:
        """For batch scripts: this start ends before it has done a step, and the run is to continue."""
        reason = self.stop_request.reason or "another rank was asked to stop"
        run_folder.write_marker(self.out_dir, "requeue", self.step, reason)
