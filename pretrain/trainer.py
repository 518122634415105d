"""The training loop.

    build -> resume -> for each step: feed, step, log, validate, agree on stopping, save -> finish

Everything on the device stays there until a log step: losses, norms and skips are read together, once.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_gpt.attention import choose_attention
from lit_gpt.checkpoint import list_checkpoints
from lit_gpt.cli import InputError
from pretrain import parallel
from pretrain.checkpointing import Checkpointer
from pretrain.dataloader import DataLoader, StepBatch, check_resumable, evaluation_batches
from pretrain.datapoint_log import DatapointLog
from pretrain.inputs import open_inputs
from pretrain.metrics import MetricsWriter, ProgressLine
from pretrain.optim import build_optimizer, guarded_step
from pretrain.options import TrainOptions
from pretrain.preemption import StopAgreement, StopRequest
from pretrain.preflight import check_launch, preflight
from pretrain.schedules import Schedule
from pretrain.speed_monitor import SpeedMonitor
from pretrain.step_reporter import StepReporter
from pretrain.watchdog import Watchdog


class Trainer:
    """One run, from its options to its last checkpoint."""

    def __init__(self, options: TrainOptions, stop_request: StopRequest) -> None:
        self.options = options
        self.out_dir = Path(options.out_dir)
        check_launch(options.devices, options.num_nodes, options.accelerator)
        self.data, self.validation, self.config = open_inputs(options)
        self.fabric = parallel.launch(options)
        self.device = self.fabric.device
        self.rank = self.fabric.global_rank
        self.world_size = self.fabric.world_size
        self._make_out_dir()
        stores = self.data.stores + ([self.validation] if self.validation else [])
        self.startup_lines = preflight(self.fabric, stores, self.out_dir)
        stop_request.limit(options.max_seconds)
        self.stop_request = stop_request
        self.watchdog = Watchdog(
            self.out_dir, self.rank, self.world_size, options.watchdog_minutes * 60
        ).start()
        self._build_model()
        self._build_bookkeeping()

    # ---- building

    def _make_out_dir(self) -> None:
        """Rank 0 makes the folder and removes the last start's marker; all see it after the barrier."""
        if self.rank == 0:
            try:
                self.out_dir.mkdir(parents=True, exist_ok=True)
                if self.options.resume is None and list_checkpoints(self.out_dir):
                    raise InputError(
                        f"--out_dir {self.out_dir} holds checkpoints: give --resume auto or another folder"
                    )
                (self.out_dir / "requeue").unlink(missing_ok=True)
                (self.out_dir / "config.yaml").write_text(yaml.safe_dump(self.options.to_dict()))
            except OSError as error:
                raise InputError(
                    f"--out_dir {self.out_dir}: cannot write there ({error.strerror})"
                ) from error
        self.fabric.barrier()

    def _build_model(self) -> None:
        options = self.options
        compiled = options.compile == "true" or (options.compile == "auto" and self.device.type == "cuda")
        precision = parallel.resolve_precision(options.precision, self.device.type)
        dtype = torch.float32 if precision == "32-true" else torch.bfloat16
        attention, reason = choose_attention(options.attention, self.device, dtype)
        self.model = parallel.build_model(self.fabric, options, self.config, compiled)
        raw = build_optimizer(
            self.model, options.learning_rate, options.weight_decay, options.beta1, options.beta2
        )
        self.raw_optimizer = raw
        self.fabric.setup_optimizers(raw)
        self.schedule = Schedule(
            options.lr_schedule,
            options.learning_rate,
            options.min_lr,
            options.warmup_steps,
            options.max_steps,
            options.decay_steps or max(options.max_steps // 10, 1),
        )
        self.startup_lines += [
            f"model {self.config.name}: {self.config.n_parameters:,} parameters, vocabulary "
            f"{self.config.vocab_size}, rows of {self.config.block_size}",
            f"{self.world_size} process(es) on {self.device.type}, {precision}, "
            f"{options.sharding_strategy if self.world_size > 1 else 'not sharded'}, "
            f"{'compiled' if compiled else 'not compiled'}",
            f"attention: {attention} ({reason})",
        ]
        if precision == "bf16-true":
            self.startup_lines.append("warning: bf16-true keeps weights and Adam's moments in bf16")

    def _build_bookkeeping(self) -> None:
        """Resume, then everything that starts at the step resumed from."""
        options, rank = self.options, self.rank
        self.gloo_group = parallel.new_gloo_group()
        node_rank, local_rank = self.fabric.node_rank, self.fabric.local_rank
        node_group = parallel.new_node_group(options.num_nodes, options.devices, node_rank)
        self.agreement = StopAgreement(self.stop_request, self.gloo_group)
        self.checkpointer = Checkpointer(
            self.out_dir,
            process_group=parallel.new_gloo_group(parallel.SAVE_TIMEOUT),
            rank=rank,
            world_size=self.world_size,
            keep_last=options.keep_last,
            keep_every=options.keep_every,
            state_dict_type=options.state_dict_type,
            asynchronous=options.async_save,
            on_save_error=options.on_save_error,
        )
        self.step = 0
        self.tokens = 0
        self._resume()
        self.loader = DataLoader(
            self.data,
            global_batch_size=options.global_batch_size,
            micro_batch_size=options.micro_batch_size,
            rank=rank,
            world_size=self.world_size,
            device=self.device,
            first_step=self.step + 1,
        )
        self.datapoint_log: DatapointLog | None = None
        if options.log_datapoints:
            self.datapoint_log = DatapointLog(
                self.out_dir,
                self.data.describe(),
                global_batch_size=options.global_batch_size,
                rank=rank,
                local_rank=local_rank,
                node_rank=node_rank,
                node_group=node_group,
            )
            if rank == 0:
                self.datapoint_log.discard_after(self.step)
        self.fabric.barrier()
        metrics = MetricsWriter(self.out_dir, self.step + 1, options.wandb_project) if rank == 0 else None
        self.metrics = metrics
        self.progress = ProgressLine(self.step + 1, options.max_steps, enabled=rank == 0)
        self.speed = SpeedMonitor(self.config, self.device, self.world_size)
        self.reporter = StepReporter(
            rank, self.data, self.schedule, self.speed, metrics, self.progress, options.max_skipped_steps
        )

    def _resume(self) -> None:
        """Load the checkpoint that `--resume` names, if any, and take up its step."""
        options = self.options
        folder = self.checkpointer.find(options.resume) if options.resume else None
        if folder is None:
            if options.initial_checkpoint_dir is not None:
                self.checkpointer.load(Path(options.initial_checkpoint_dir), self.model, None)
                self.startup_lines.append(f"weights from {options.initial_checkpoint_dir}, fresh optimizer")
            self.startup_lines.append("starting at step 1")
            return
        state = self.checkpointer.load(folder, self.model, self.raw_optimizer, expected=self._identity())
        check_resumable(state["data"], self.data, options.allow_changed_data)
        self.step, self.tokens = state["step"], state["tokens"]
        self.startup_lines.append(f"resumed from {folder} at step {self.step}")

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be its continuation."""
        return {"model": self.config.to_dict(), "global_batch_size": self.options.global_batch_size}

    # ---- the loop

    def fit(self) -> None:
        """Train to max_steps, or to the step at which the ranks agreed to stop."""
        if self.rank == 0:
            for line in self.startup_lines:
                self.progress.message(line)
        if self.step >= self.options.max_steps:
            self.progress.message(f"already complete: step {self.step} of {self.options.max_steps}")
            return self._leave("done")
        stopping = False
        batches = iter(self.loader)
        while self.step < self.options.max_steps and not stopping:
            waited = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - waited
            self.train_step(batch, waited)
            stopping = self.agreement.should_stop()
            last = stopping or self.step == self.options.max_steps
            val_loss = self._validate() if self._due(self.options.eval_step_interval, last) else None
            save = self._due(self.options.save_step_interval, last)
            if save or val_loss is not None or self._due(self.options.log_step_interval, last):
                self.reporter.report(val_loss)
            if save:
                self.save_checkpoint()
            if self.checkpointer.poll():
                self.stop_request.reason = self.stop_request.reason or "a checkpoint could not be written"
            self.watchdog.beat(f"step {self.step}")
        self._leave("done" if self.step == self.options.max_steps else "requeue")

    def _due(self, interval: int, last: bool) -> bool:
        return last or (interval > 0 and self.step % interval == 0)

    def train_step(self, batch: StepBatch, waited: float) -> None:
        """Forward and backward over this rank's micro-batches, then one optimizer step."""
        # FSDP2 averages gradients over ranks; this turns the average into the mean over all targets.
        scale = self.world_size / batch.n_targets
        loss_sum = torch.zeros((), device=self.device)
        for index, micro in enumerate(batch.micro_batches):
            parallel.sync_gradients(self.model, last=index == len(batch.micro_batches) - 1)
            loss = self.model(micro.input_ids, micro.positions, micro.documents, micro.labels)
            self.fabric.backward(loss * scale)
            loss_sum += loss.detach()
        mean_loss = parallel.all_reduce_sum(loss_sum) / batch.n_targets
        self.step = batch.step
        learning_rate = self.schedule.learning_rate(self.step)
        norm, skipped = guarded_step(self.raw_optimizer, learning_rate, self.options.grad_clip, mean_loss)
        self.raw_optimizer.zero_grad(set_to_none=True)
        self.tokens += batch.n_targets
        self.speed.step(batch.n_targets, batch.attention_pairs, waited)
        self.reporter.add(batch, self.tokens, mean_loss, norm, skipped)
        if self.datapoint_log is not None:
            self.datapoint_log.record(batch.rows, time.time())

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Mean loss over the validation store's first rows, the same for any world size."""
        if self.validation is None:
            return None
        options = self.options
        with self.speed.pause():
            self.model.eval()
            totals = torch.zeros(2, dtype=torch.float64, device=self.device)
            max_rows = options.eval_iters * options.micro_batch_size or None
            for batch in evaluation_batches(
                self.validation, max_rows, options.micro_batch_size, self.rank, self.world_size, self.device
            ):
                loss = self.model(batch.input_ids, batch.positions, batch.documents, batch.labels)
                totals += torch.stack([loss.double(), (batch.labels >= 0).sum().double()])
                self.watchdog.beat("validation")
            parallel.reshard(self.model)
            self.model.train()
            loss_sum, targets = parallel.all_reduce_sum(totals).tolist()
        return loss_sum / targets

    def save_checkpoint(self) -> None:
        """The log of what was fed is on disk before the checkpoint that has seen it."""
        with self.speed.pause():
            if self.datapoint_log is not None:
                self.datapoint_log.commit(self.step, self.reporter.take_skipped())
            state = {
                "step": self.step,
                "tokens": self.tokens,
                "data": self.loader.state_dict(self.step),
                "options": self.options.to_dict(),
                **self._identity(),
            }
            self.checkpointer.save(self.step, self.model, self.raw_optimizer, state)

    def _leave(self, marker: str) -> None:
        """Finish writing, then say how the run ended: OUT/done or OUT/requeue, after every rank has saved."""
        self.loader.close()
        self.checkpointer.close()
        self.fabric.barrier()
        self.watchdog.close()
        if self.metrics is not None:
            self.metrics.close()
            content = {"step": self.step, "reason": self.stop_request.reason}
            _write_atomically(self.out_dir / marker, json.dumps(content))
        self.progress.close()
        if marker == "requeue":
            self.progress.message(
                f"stopped at step {self.step} ({self.stop_request.reason or 'another rank was asked to'}); "
                "go on with --resume auto"
            )


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
