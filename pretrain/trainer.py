"""The training loop.

    open the run (pretrain/run.py)
    for each step: feed, step, agree on stopping, validate, report, save, collect garbage
    stop the threads -> mark how the run ended

Everything on the device stays there until a log step: losses, norms and skips are read together, once.
"""

import gc
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from lit_gpt.model.loss import segment_means
from pretrain import parallel
from pretrain.data.dataloader import StepBatch
from pretrain.data.validation import mean_loss
from pretrain.launch import run_folder
from pretrain.monitor.metrics import ValidationLine
from pretrain.optim import guarded_step
from pretrain.run import Run
from pretrain.stages.resume import describe_plan
from pretrain.stages.stage import Stage
from pretrain.trainable import zero_frozen

GARBAGE_INTERVAL = 50  # steps


class Trainer(Run):
    """A run and its training loop."""

    def fit(self) -> None:
        """Train to the last step, or to the one at which the ranks agreed to stop."""
        self._show_startup_lines()
        if self.step >= self.last_step:
            self.progress.message(f"already complete: step {self.step} of {self.last_step}")
        try:
            try:
                self._train_stages()
            finally:
                self._stop_threads()
            self._leave("done" if self.step >= self.last_step else "requeue")
        finally:  # nothing depends on it: an upload may hang
            in_time = self.metrics is None or self.metrics.close_boards()
        if not in_time:
            os._exit(0)  # at interpreter shutdown wandb would wait again

    def _show_startup_lines(self) -> None:
        if self.rank == 0:
            for line in self.startup_lines:
                self.progress.message(line)
        self.startup_lines.clear()

    def _train_stages(self) -> None:
        """To the end of the last stage, or to where the run is to stop."""
        while True:
            with no_automatic_collection():
                self._train()
            following = self.stages[self.stage.plan.number + 1 :]
            if self.agreement.reached or not following or not self._may_begin(following[0]):
                return
            self._cross_border(following[0])

    def _may_begin(self, following: Stage) -> bool:
        """Whether the checkpoint that a stage starts from is on disk and no rank was asked to stop."""
        self.watchdog.phase("saving")
        if not self.checkpointer.has_saved(self.step):
            border = self.checkpointer.folder(self.step)
            self.errors.warn(f"stage {following.name} does not begin: it would start from {border}")
            self.stop_request.reason = self.stop_request.reason or f"{border} could not be written"
            return False
        self._stop_if_unwritten()
        self.agreement.should_stop()  # what this call sends the next one reads
        return not self.agreement.should_stop()

    def _cross_border(self, following: Stage) -> None:
        """Drop all of a stage, and build the next from the checkpoint that was just written."""
        began = time.monotonic()
        self.loader.close()
        # Not the loader: what goes wrong from here on closes it once more.
        del self.model, self.optimizer, self.partly_frozen, self.reporter
        gc.collect()
        torch.compiler.reset()  # or the recompilations of all stages would count towards dynamo's limit
        self.found = self.checkpointer.folder(self.step)
        self._build_stage(following)
        self._open_logs()
        self.startup_lines.append(f"border: {time.monotonic() - began:.1f} s")
        self._show_startup_lines()

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
        if self.step == self.stage.steps_before:
            val_loss = self._validate("validation before the first step")
            if val_loss is not None:
                self.progress.message(f"before step {first_step}: val {val_loss:.4f}")
        self.watchdog.phase("the first step")
        while self.step < self.schedule.last_step and not self.agreement.reached:
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
                if self.datapoint_log is not None:
                    self.datapoint_log.fetch_losses()  # the report has waited for the device
            if save:
                self.save_checkpoint()
            self._stop_if_unwritten()
            if self.step % GARBAGE_INTERVAL == 0:
                gc.collect()
            self.watchdog.phase("training")

    def _stop_if_unwritten(self) -> None:
        """Ask the ranks to stop if something cannot be written and the run is not to continue without."""
        if self.errors.stop or (self.datapoint_log is not None and self.datapoint_log.too_much_waits):
            self.stop_request.reason = self.stop_request.reason or "what is to be saved cannot be written"

    def _due(self, interval: int) -> bool:
        """At every so many steps, and at the last one of a stage."""
        return self.step == self.schedule.last_step or (interval > 0 and self.step % interval == 0)

    def train_step(self, batch: StepBatch, waited: float) -> bool:
        """Forward and backward over this rank's micro-batches, then one optimizer step.

        Args:
            batch: Of this rank.
            waited: Seconds until it was there.

        Returns:
            False if the ranks agreed to stop between two micro-batches: then no rank has done the step.
        """
        # FSDP2 averages gradients over ranks; this turns the average into the mean over all targets.
        n_targets = max(batch.n_targets, 1)  # all may be masked: then loss and gradient are 0
        scale = self.world_size / n_targets
        loss_sum = torch.zeros((), device=self.device)
        log_losses = self.datapoint_log is not None and self.options.log_losses
        segment_losses = []
        for index, micro in enumerate(batch.micro_batches):
            if index > 0:
                self.watchdog.beat(f"micro-batch {index} of step {batch.step}")
                if self.agreement.should_stop():
                    return False
            parallel.sync_gradients(self.model, last=index == len(batch.micro_batches) - 1)
            loss, by_token = self.model(
                micro.input_ids, micro.positions, micro.documents, micro.labels, by_token=True
            )
            self.fabric.backward(loss * scale)
            loss_sum += loss.detach()
            if log_losses:
                means = segment_means(by_token, micro.labels.flatten(), micro.documents.cu_seqlens)
                segment_losses.append(means)
        mean_loss = parallel.all_reduce_sum(loss_sum) / n_targets
        self.step = batch.step
        zero_frozen(self.partly_frozen)
        learning_rate = self.schedule.learning_rate(self.step)
        norm, skipped = guarded_step(self.optimizer, learning_rate, self.options.grad_clip, mean_loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += batch.n_targets
        self.speed.step(batch.n_tokens, batch.attention_pairs, waited)
        self.reporter.add(batch.rows, self.tokens, mean_loss, norm, skipped)
        if self.datapoint_log is not None:
            self.datapoint_log.record(batch.rows, time.time(), segment_losses)
        return True

    @torch.no_grad()
    def _validate(self, phase: str = "validation") -> float | None:
        """Mean loss over the targets of all validation stores, also to validation.csv; None when stopping."""
        if self.validation is None or self.agreement.reached:
            return None
        self.watchdog.phase(phase)

        def should_stop() -> bool:
            self.watchdog.beat(f"a batch after step {self.step}")
            return self.agreement.should_stop()

        with self.speed.pause():
            self.model.eval()
            results = self.validation.measure(self.model, should_stop)
            parallel.reshard(self.model)
            self.model.train()
        if results is None:
            return None
        if self.metrics is not None:
            lines = [
                (self.step, self.stage.name, n.store, n.targets, n.loss, n.bits_per_byte) for n in results
            ]
            self.metrics.write_validation([ValidationLine(*line) for line in lines])
        return mean_loss(results)

    def save_checkpoint(self) -> None:
        """Save, after log and metrics of the steps that the checkpoint covers are on disk."""
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
                **({"extension": self.extension} if self.extension else {}),
                **({"chat": chat} if (chat := self._chat_format()) else {}),
                **self._identity(),
                **describe_plan(self.stages, self.stage),
            }
            self.checkpointer.save(self.step, self.model, self.optimizer, state, write_logs)

    def _chat_format(self) -> dict[str, Any] | None:
        """Of the latest conversations that the model was trained on, in this stage or before."""
        begun = self.stages[: self.stage.plan.number + 1]
        formats = [asdict(stage.data.chat) for stage in begun if stage.data.chat]
        return formats[-1] if formats else self.chat_before

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
                "continue with --resume auto"
            )


@contextmanager
def no_automatic_collection() -> Iterator[None]:
    """Collect garbage only where asked to: every rank waits for one that collects within a step."""
    gc.collect()
    gc.freeze()  # what the run consists of need not be looked at again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
