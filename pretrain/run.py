"""A run, opened step by step: everything that the training loop works with.

join -> read data -> connect -> choose kernels -> find checkpoint -> build model -> resume -> open logs
"""

from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint.folder import read_state
from lit_gpt.model.attention import choose_attention
from pretrain import parallel, trainable
from pretrain.checkpoint.checkpointer import Checkpointer
from pretrain.checkpoint.collective import Ranks
from pretrain.data.dataloader import DataLoader, check_resumable
from pretrain.data.inputs import open_inputs
from pretrain.data.numbering import Numbering
from pretrain.data.validation import Validation
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.log import DatapointLog
from pretrain.launch import run_folder
from pretrain.launch.preflight import connect, join, preflight
from pretrain.launch.roll_call import RollCall
from pretrain.launch.stop import StopAgreement
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.epochs import Epochs
from pretrain.monitor.metrics import MetricsWriter, ProgressLine
from pretrain.monitor.save_errors import SaveErrors
from pretrain.monitor.step_reporter import SpeedMonitor, StepReporter
from pretrain.optim import build_optimizer
from pretrain.options import TrainOptions
from pretrain.schedules import keep_schedule, make_schedule
from pretrain.shape import initial_shape, length_warnings


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
        self._find_checkpoint()
        self._build_model()
        self._resume()
        self._open_logs()

    def _read_data(self) -> None:
        """Before the ranks are connected: packing may take hours, and no collective is to wait for it."""
        self.watchdog.phase("reading the data")
        self.data, self.validation_stores, self.config = open_inputs(self.options)
        self.startup_lines += length_warnings(self.config, initial_shape(self.options))
        self.epochs = Epochs.of(self.data, self.options.global_batch_size)
        self.schedule = make_schedule(self.options, self.epochs.rows)

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
        stores = [*self.data.stores, *self.validation_stores.values()]
        self.startup_lines += preflight(roll_call, self.fabric, stores, self.out_dir)
        self.agreement = StopAgreement(self.stop_request, parallel.new_gloo_group())
        self.validation = self._open_validation()
        for store in (packed.store for packed in self.data.stores):
            self.startup_lines += store.document_ends.warnings(store.path)

    def _open_validation(self) -> Validation | None:
        if not self.validation_stores:
            return None
        world = (self.rank, self.world_size, self.device)
        validation = Validation(self.validation_stores, self.options, *world)
        if self.rank == 0:
            self.startup_lines += validation.describe()
        return validation

    def _choose_kernels(self) -> None:
        """Before a checkpoint is verified, which takes minutes for 7B: what cannot work here is refused."""
        options, device_type = self.options, self.device.type
        precision = parallel.resolve_precision(options.precision, device_type)
        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        attention, reason = choose_attention(options.attention, self.device, dtype, self.config.head_dim)
        if options.float8:
            parallel.check_float8(self.device)
        self.kernel_lines = [
            f"{self.world_size} process(es) on {device_type}, {precision}, "
            f"{options.sharding_strategy if options.sharded else 'not sharded'}, "
            f"{'compiled' if parallel.is_compiled(options, device_type) else 'not compiled'}",
            f"attention: {attention} ({reason})",
        ]
        if precision == "bf16-true":
            self.kernel_lines.append("warning: bf16-true keeps weights and Adam's moments in bf16")

    def _find_checkpoint(self) -> None:
        """Before weights are drawn: that takes minutes for 7B, and resuming would throw them away."""
        self.watchdog.phase("verifying and loading a checkpoint")
        self.errors = SaveErrors(self.options.on_save_error, self.rank)
        ranks = Ranks(parallel.new_gloo_group(), self.rank, self.world_size)
        self.checkpointer = Checkpointer(self.options, ranks, self.errors)
        self.found = self.checkpointer.find(self.options.resume) if self.options.resume else None
        if self.found is not None:
            saved = read_state(self.found).get("options", {}).get("trainable")
            trainable.check_unchanged(saved, self.options.trainable, self.config)

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
        self.startup_lines += [
            f"model {self.config.name}: {self.config.n_parameters:,} parameters, vocabulary "
            f"{self.config.vocab_size}, rows of {self.config.block_size}",
            *trainable.describe(frozen, self.config),
            *self.kernel_lines,
        ]

    def _resume(self) -> None:
        """Load the checkpoint that was found, or the weights to start from, if any."""
        self.watchdog.phase("verifying and loading a checkpoint")
        options, initial = self.options, self.options.initial_checkpoint_dir
        self.was_logged = False
        if self.found is not None:
            state = self.checkpointer.load(self.found, self.model, self.optimizer, expected=self._identity())
            check_resumable(state["data"], self.data, options.allow_changed_data)
            self.step, self.tokens = state["step"], state["tokens"]
            is_own = self.found.resolve().parent == self.out_dir.resolve()
            self.was_logged = is_own and state.get("options", {}).get("log_datapoints", False)
            self.options = keep_schedule(options, state.get("options", {}))
            self.schedule = make_schedule(self.options, self.epochs.rows)
            start = f"resumed from {self.found} at step {self.step}, {self.epochs.now(self.step)}, "
            start += f"{self.tokens:,} tokens seen"
        elif initial is not None:
            self.checkpointer.load(Path(initial), self.model, None)
            start = f"weights from {initial}, fresh optimizer"
        else:
            start = "starting at step 1"
        self.startup_lines += [start, *self.epochs.describe(self.schedule.max_steps)]
        self.startup_lines.append(self.schedule.describe(self.options))

    def _open_logs(self) -> None:
        """The loader and all that is written, from the step after the one resumed from."""
        options, first_step = self.options, self.step + 1
        self.loader = DataLoader(
            self.data,
            global_batch_size=options.global_batch_size,
            micro_batch_size=options.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            first_step=first_step,
        )
        self.datapoint_log = self._open_datapoint_log()
        self.metrics: MetricsWriter | None = None
        self.checkpointer.ranks.first(self._open_metrics)
        self.progress = ProgressLine(first_step, self.schedule.max_steps, enabled=self.rank == 0)
        self.speed = SpeedMonitor(self.config, self.device, self.world_size)
        self.reporter = StepReporter(
            self.rank,
            self.data,
            self.epochs,
            self.schedule,
            self.speed,
            self.metrics,
            self.progress,
            options.max_skipped_steps,
        )

    def _open_metrics(self) -> None:
        self.metrics = MetricsWriter(self.out_dir, self.step + 1, self.options.wandb_project, self.errors)

    def _open_datapoint_log(self) -> DatapointLog | None:
        first, options = self.checkpointer.ranks.first, self.options
        if not options.log_datapoints:
            first(lambda: datapoint_files.discard_after(self.out_dir / "datapoints", self.step))
            return None
        node_rank = self.fabric.node_rank
        log = DatapointLog(
            self.out_dir,
            self.data.describe(),
            numbering=Numbering(options.global_batch_size),
            rank=self.rank,
            local_rank=self.fabric.local_rank,
            node_rank=node_rank,
            node_group=parallel.new_node_group(options.devices, node_rank),
        )
        first(lambda: log.discard_after(self.step, self.was_logged, options.accept_log_gap))
        return log

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be its continuation."""
        shape = {name: value for name, value in self.config.to_dict().items() if name != "name"}
        return {"model": shape, "global_batch_size": self.options.global_batch_size}

    def _mark_stopped(self) -> None:
        """For batch scripts: this start ends before it has done a step, and the run is to continue."""
        reason = self.stop_request.reason or "another rank was asked to stop"
        run_folder.write_marker(self.out_dir, "requeue", self.step, reason)
