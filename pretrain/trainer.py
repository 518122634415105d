"""The training loop.

    read -> build -> resume -> for each step: feed, step, agree on stopping, validate, log, save -> finish

Everything on the device stays there until a log step: losses, norms and skips are read together, once.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from lit_gpt.model.attention import choose_attention
from pretrain import parallel
from pretrain.checkpoint.checkpointer import Checkpointer
from pretrain.data.dataloader import DataLoader, StepBatch, check_resumable
from pretrain.data.inputs import open_inputs
from pretrain.data.validation import ValidationSample
from pretrain.datapoints import files as datapoint_files
from pretrain.datapoints.log import DatapointLog
from pretrain.launch import run_folder
from pretrain.launch.preflight import connect, join, preflight
from pretrain.launch.stop import StopAgreement
from pretrain.launch.watchdog import Watchdog
from pretrain.monitor.epochs import Epochs
from pretrain.monitor.metrics import MetricsWriter, ProgressLine
from pretrain.monitor.save_errors import SaveErrors
from pretrain.monitor.speed import SpeedMonitor
from pretrain.monitor.step_reporter import StepReporter
from pretrain.optim import build_optimizer, guarded_step
from pretrain.options import TrainOptions
from pretrain.schedules import keep_schedule, make_schedule


class Trainer:
    """One run, from its options to its last checkpoint."""

    def __init__(self, options: TrainOptions, watchdog: Watchdog) -> None:
        self.options = options
        self.out_dir = Path(options.out_dir)
        self.watchdog = watchdog
        self.stop_request = watchdog.stop_request
        self.stop_request.limit(options.max_seconds)
        self.watchdog.limit(options.watchdog_minutes, self.out_dir)
        ranks = join(options, watchdog)
        self.watchdog.phase("reading the data")
        self.data, validation, self.config = open_inputs(options)
        self.epochs = Epochs.of(self.data, options.global_batch_size)
        self.schedule = make_schedule(options, self.epochs.rows)
        connect(ranks, parallel.resolve_accelerator(options.accelerator))
        self.watchdog.phase("checking devices and network")
        self.fabric = parallel.launch(options)
        self.device = self.fabric.device
        self.rank = self.fabric.global_rank
        self.world_size = self.fabric.world_size
        # The others wait for it in the pre-flight.
        self.run_lock = run_folder.prepare(options) if self.rank == 0 else None
        self.step = 0
        self.watchdog.before_stopping = self._mark_stopped  # the markers of the start before are gone now
        stores = self.data.stores + ([validation] if validation else [])
        self.startup_lines = preflight(ranks, self.fabric, stores, self.out_dir)
        max_rows = options.eval_iters * options.micro_batch_size or None
        self.validation = ValidationSample(validation, max_rows) if validation else None
        if self.validation is not None and self.rank == 0:
            self.startup_lines += self.validation.describe()
        self.agreement = StopAgreement(self.stop_request, parallel.new_gloo_group())
        self.watchdog.phase("drawing weights")
        self._build_model()
        self.watchdog.phase("verifying and loading a checkpoint")
        self._resume()
        self._open_logs()

    # ---- building

    def _build_model(self) -> None:
        options = self.options
        compiled = options.compile == "true" or (options.compile == "auto" and self.device.type == "cuda")
        precision = parallel.resolve_precision(options.precision, self.device.type)
        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        attention, reason = choose_attention(options.attention, self.device, dtype, self.config.head_dim)
        self.model = parallel.build_model(self.fabric, options, self.config, compiled)
        self.optimizer = build_optimizer(
            self.model, options.learning_rate, options.weight_decay, options.beta1, options.beta2
        )
        self.startup_lines += [
            f"model {self.config.name}: {self.config.n_parameters:,} parameters, vocabulary "
            f"{self.config.vocab_size}, rows of {self.config.block_size}",
            f"{self.world_size} process(es) on {self.device.type}, {precision}, "
            f"{options.sharding_strategy if options.sharded else 'not sharded'}, "
            f"{'compiled' if compiled else 'not compiled'}",
            f"attention: {attention} ({reason})",
        ]
        for store in (packed.store for packed in self.data.stores):
            self.startup_lines += store.document_ends.warnings(store.path)
        if precision == "bf16-true":
            self.startup_lines.append("warning: bf16-true keeps weights and Adam's moments in bf16")

    def _resume(self) -> None:
        """Load the checkpoint that `--resume` names, if any, and go on at its step."""
        options = self.options
        self.errors = SaveErrors(options.on_save_error, self.rank)
        self.checkpointer = Checkpointer(
            self.out_dir,
            process_group=parallel.new_gloo_group(),
            rank=self.rank,
            world_size=self.world_size,
            keep_last=options.keep_last,
            keep_every=options.keep_every,
            state_dict_type=options.state_dict_type,
            asynchronous=options.async_save,
            errors=self.errors,
        )
        self.checkpointer.reserve(self.model, self.optimizer)
        self.tokens = 0
        self.was_logged = False
        if options.resume and (folder := self.checkpointer.find(options.resume)) is not None:
            state = self.checkpointer.load(folder, self.model, self.optimizer, expected=self._identity())
            check_resumable(state["data"], self.data, options.allow_changed_data)
            self.step, self.tokens = state["step"], state["tokens"]
            is_own = folder.resolve().parent == self.out_dir.resolve()
            self.was_logged = is_own and state.get("options", {}).get("log_datapoints", False)
            self.options = keep_schedule(options, state.get("options", {}))
            self.schedule = make_schedule(self.options, self.epochs.rows)
            self.startup_lines.append(
                f"resumed from {folder} at step {self.step}, {self.epochs.now(self.step)}, "
                f"{self.tokens:,} tokens seen"
            )
        elif options.initial_checkpoint_dir is not None:
            self.checkpointer.load(Path(options.initial_checkpoint_dir), self.model, None)
            self.startup_lines.append(f"weights from {options.initial_checkpoint_dir}, fresh optimizer")
        else:
            self.startup_lines.append("starting at step 1")
        self.startup_lines += self.epochs.describe(self.schedule.max_steps)
        self.startup_lines.append(self.schedule.describe(self.options))

    def _open_logs(self) -> None:
        """The loader and all that is written, from the step after the one resumed from."""
        options, rank = self.options, self.rank
        self.loader = DataLoader(
            self.data,
            global_batch_size=options.global_batch_size,
            micro_batch_size=options.micro_batch_size,
            rank=rank,
            world_size=self.world_size,
            device=self.device,
            first_step=self.step + 1,
        )
        self.datapoint_log = self._open_datapoint_log()
        self.metrics: MetricsWriter | None = None
        self.checkpointer.ranks.first(self._open_metrics)
        self.progress = ProgressLine(self.step + 1, self.schedule.max_steps, enabled=rank == 0)
        self.speed = SpeedMonitor(self.config, self.device, self.world_size)
        self.reporter = StepReporter(
            rank,
            self.data,
            self.epochs,
            self.schedule,
            self.speed,
            self.metrics,
            self.progress,
            options.max_skipped_steps,
        )

    def _open_metrics(self) -> None:
        wandb_project = self.options.wandb_project
        self.metrics = MetricsWriter(self.out_dir, self.step + 1, wandb_project, self.errors)

    def _open_datapoint_log(self) -> DatapointLog | None:
        first, options = self.checkpointer.ranks.first, self.options
        if not options.log_datapoints:
            first(lambda: datapoint_files.discard_after(self.out_dir / "datapoints", self.step))
            return None
        node_rank = self.fabric.node_rank
        log = DatapointLog(
            self.out_dir,
            self.data.describe(),
            global_batch_size=options.global_batch_size,
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

    # ---- the loop

    def fit(self) -> None:
        """Train to max_steps, or to the step at which the ranks agreed to stop."""
        if self.rank == 0:
            for line in self.startup_lines:
                self.progress.message(line)
        if self.step >= self.schedule.max_steps:
            self.progress.message(f"already complete: step {self.step} of {self.schedule.max_steps}")
        try:
            self._train()
        finally:
            self._stop_threads()
        self._leave("done" if self.step >= self.schedule.max_steps else "requeue")

    def _stop_threads(self) -> None:
        """Always do so: a live thread can crash interpreter shutdown."""
        self.watchdog.phase("finishing")
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()
        self.checkpointer.wait()

    def _train(self) -> None:
        """Step by step; not at all where all steps are done."""
        first_step = self.step + 1  # reported at once: on a slow machine the tenth comes late
        batches = iter(self.loader)
        self.watchdog.phase("the first step")
        while self.step < self.schedule.max_steps and not self.agreement.reached:
            waited = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - waited
            if self.train_step(batch, waited):
                self.agreement.should_stop()
            self.watchdog.beat(f"step {self.step}")
            self.watchdog.phase("training")  # a step is done: from now on a stop saves
            val_loss = self._validate() if self._due(self.options.eval_step_interval) else None
            save = self._due(self.options.save_step_interval)
            if self.agreement.reached:
                self.watchdog.phase("saving")  # waits for a save under way
                save = not self.checkpointer.has_saved(self.step)
            log = self.step == first_step or self._due(self.options.log_step_interval)
            if save or val_loss is not None or log:
                self.reporter.report(val_loss)
            if save:
                self.save_checkpoint()
            if self.errors.stop or (self.datapoint_log is not None and self.datapoint_log.too_much_waits):
                self.stop_request.reason = self.stop_request.reason or "what is to be saved cannot be written"
            self.watchdog.phase("training")

    def _due(self, interval: int) -> bool:
        """At every so many steps, and at the last one."""
        return self.step == self.schedule.max_steps or (interval > 0 and self.step % interval == 0)

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Forward and backward over this rank's micro-batches, then one optimizer step.

        Returns:
            False if the ranks agreed to stop between two micro-batches: then no rank has done the step.
        """
        # FSDP2 averages gradients over ranks; this turns the average into the mean over all targets.
        scale = self.world_size / batch.n_targets
        loss_sum = torch.zeros((), device=self.device)
        for index, micro in enumerate(batch.micro_batches):
            if index > 0:
                self.watchdog.beat(f"micro-batch {index} of step {batch.step}")
                if self.agreement.should_stop():
                    return False
            parallel.sync_gradients(self.model, last=index == len(batch.micro_batches) - 1)
            loss = self.model(micro.input_ids, micro.positions, micro.documents, micro.labels)
            self.fabric.backward(loss * scale)
            loss_sum += loss.detach()
        mean_loss = parallel.all_reduce_sum(loss_sum) / batch.n_targets
        self.step = batch.step
        learning_rate = self.schedule.learning_rate(self.step)
        norm, skipped = guarded_step(self.optimizer, learning_rate, self.options.grad_clip, mean_loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += batch.n_targets
        self.speed.step(batch.n_targets, batch.attention_pairs, waited)
        self.reporter.add(batch.rows, self.tokens, mean_loss, norm, skipped)
        if self.datapoint_log is not None:
            self.datapoint_log.record(batch.rows, time.time())
        return True

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Mean loss over the validation sample, the same for any world size."""
        if self.validation is None:
            return None
        self.watchdog.phase("validation")
        with self.speed.pause():
            self.model.eval()
            totals = torch.zeros(2, dtype=torch.float64, device=self.device)
            for batch in self.validation.batches(
                self.options.micro_batch_size, self.rank, self.world_size, self.device
            ):
                loss = self.model(batch.input_ids, batch.positions, batch.documents, batch.labels)
                totals += torch.stack([loss.double(), (batch.labels >= 0).sum().double()])
                self.watchdog.beat(f"a batch after step {self.step}")
                if self.agreement.should_stop():
                    break
            parallel.reshard(self.model)
            self.model.train()
            if self.agreement.reached:
                return None
            loss_sum, targets = parallel.all_reduce_sum(totals).tolist()
        return loss_sum / targets

    def save_checkpoint(self) -> None:
        """Log and metrics of the steps that a checkpoint has seen are on disk before it is."""
        self.watchdog.phase("saving")
        with self.speed.pause():
            skipped = self.reporter.take_skipped()
            write_log = self.datapoint_log.take(self.step, skipped) if self.datapoint_log else None

            def write_logs() -> None:
                if self.metrics is not None:
                    self.metrics.flush()
                if write_log is not None:
                    write_log()

            state = {
                "step": self.step,
                "tokens": self.tokens,
                "data": self.loader.state_dict(self.step),
                "options": self.options.to_dict() | self.schedule.as_options(),
                "tokenizer": self.data.stores[0].store.manifest.tokenizer,
                "documents": self.data.document_ends._asdict(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                **self._identity(),
            }
            self.checkpointer.save(self.step, self.model, self.optimizer, state, write_logs)

    def _leave(self, marker: run_folder.Marker) -> None:
        """Finish writing, then say how the run ended, after every rank has saved."""
        self.checkpointer.close()
        reason = self.stop_request.reason
        self.checkpointer.ranks.first(
            lambda: run_folder.write_marker(self.out_dir, marker, self.step, reason)
        )
        self.watchdog.close()
        if self.run_lock is not None:
            self.run_lock.close()
        self.progress.close()
        if marker == "requeue":
            self.progress.message(
                f"stopped at step {self.step} ({self.stop_request.reason or 'another rank was asked to'}); "
                "go on with --resume auto"
            )
        # Last, since nothing depends on it: an upload may hang.
        if self.metrics is not None and not self.metrics.close_boards():
            os._exit(0)  # at interpreter shutdown wandb would wait again

    def _mark_stopped(self) -> None:
        """For batch scripts: this start ends before it has done a step, and the run is to go on."""
        reason = self.stop_request.reason or "another rank was asked to stop"
        run_folder.write_marker(self.out_dir, "requeue", self.step, reason)
