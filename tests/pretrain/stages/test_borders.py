"""Borders between stages: what crosses them, and what happens when a run is struck there."""

import shutil
import weakref
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lit_gpt.checkpoint.folder import folder_name, list_checkpoints, read_manifest, read_state
from lit_gpt.checkpoint.tensor_files import TensorReader
from lit_gpt.cli import InputError
from pretrain.checkpoint.snapshot import restore_optimizer
from pretrain.datapoints.files import RunLog, part_files
from pretrain.datapoints.replay import Replay
from pretrain.monitor.metrics import read_validation
from pretrain.trainer import Trainer
from tests.masked_stores import CHAT
from tests.pretrain.running import assert_same_checkpoint, checkpoint_tensors, losses, open_run
from tests.pretrain.saving import file_size_limit
from tests.pretrain.stages.three_stages import BORDERS, LAST_STEP, RUN, STEPS, three_stages


@pytest.fixture(scope="module")
def plan(train_store_dir, val_store_dir, masked_store_dir):
    return three_stages(train_store_dir, val_store_dir, masked_store_dir)


@pytest.fixture(scope="module")
def flags(plan, val_store_dir):
    """Of runs that can be compared with `straight`."""
    return RUN | {"stages": plan, "val_data_dir": [str(val_store_dir)]}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train_store_dir, flags):
    """An undisturbed run with the checkpoint of every step."""
    folder = tmp_path_factory.mktemp("borders") / "run"
    open_run(folder, train_store_dir, **flags | {"keep_last": 0}).fit()
    return folder


def assert_same_run(run: Path, straight: Path) -> None:
    """Bitwise the same end, every step once in metrics and log, every validation once."""
    assert_same_checkpoint(run, straight, LAST_STEP)
    assert losses(run) == losses(straight)
    report = list(Replay(run).verify())[-1]
    assert (report.messages, report.steps) == ([], LAST_STEP)
    path = straight / "validation.csv"
    assert not path.exists() or read_validation(run / "validation.csv") == read_validation(path)


@pytest.mark.slow
def test_resumed_at_any_step_it_equals_the_undisturbed_run(straight, tmp_path, train_store_dir, flags):
    for step in (3, 4, 5, 7):
        run = tmp_path / str(step)
        shutil.copytree(straight, run)
        for later in range(step + 1, LAST_STEP + 1):
            shutil.rmtree(run / folder_name(later))
        open_run(run, train_store_dir, resume="auto", **flags).fit()
        assert_same_run(run, straight)
        # Borders never expire; the last checkpoint is the newest.
        kept = [later for later, _ in list_checkpoints(run) if later >= step]
        assert kept == sorted({border for border in BORDERS if border >= step} | {LAST_STEP})


def test_every_border_is_validated_on_both_sides(straight):
    lines = [(line.step, line.stage) for line in read_validation(straight / "validation.csv")]
    assert lines == [(0, "adapt"), (4, "adapt"), (4, "long"), (7, "long"), (7, "chat"), (10, "chat")]


def alone(tmp_path, straight, store, plan, number) -> Trainer:
    """A stage as a run of its own, which starts from the weights of the border before it."""
    stage = {
        name: value for name, value in plan[number].items() if name not in ("name", "steps", "optimizer")
    }
    border = straight / folder_name(BORDERS[number - 1])
    own = {"max_steps": STEPS[number], "initial_checkpoint_dir": str(border), "warmup_steps": 0}
    return open_run(tmp_path / "alone", store, **RUN | {"train_data_dir": None} | stage | own)


@pytest.mark.slow
def test_a_fresh_stage_is_a_run_of_its_own_from_the_border(tmp_path, train_store_dir, val_store_dir):
    """On the same store in other rows, and with another decay of the moments."""
    second = {"block_size": 128, "global_batch_size": 8, "beta1": 0.8, "weight_decay": 0.3, "warmup_steps": 0}
    stages = [
        {"name": "a", "steps": 4, "block_size": 64},
        {"name": "b", "steps": 3, **second, "optimizer": "fresh"},
    ]
    open_run(tmp_path / "staged", train_store_dir, **RUN | {"stages": stages}).fit()
    border = {"initial_checkpoint_dir": str(tmp_path / "staged" / folder_name(4)), "max_steps": 3}
    open_run(tmp_path / "alone", train_store_dir, **RUN | second | border).fit()
    in_stage, own = checkpoint_tensors(tmp_path / "staged", 7), checkpoint_tensors(tmp_path / "alone", 3)
    assert in_stage.keys() == own.keys()
    assert all(torch.equal(in_stage[name], own[name]) for name in own)
    assert losses(tmp_path / "staged")[4:] == losses(tmp_path / "alone")


def test_a_kept_optimizer_keeps_its_moments_and_nothing_else(straight, tmp_path, train_store_dir, plan):
    """The stage as a run of its own, given the moments by hand: betas and decay are the stage's."""
    stage = plan[1] | {"warmup_steps": 0, "lr_schedule": "constant"}
    stages = [plan[0], stage]
    shutil.copytree(straight / folder_name(4), tmp_path / "run" / folder_name(4))
    open_run(
        tmp_path / "run", train_store_dir, resume="auto", log_datapoints=False, **RUN | {"stages": stages}
    ).fit()

    by_hand = alone(tmp_path, straight, train_store_dir, stages, 1)
    border = straight / folder_name(4)
    scalars = read_state(border)["optimizer"]
    for group, own in zip(scalars["param_groups"], by_hand.optimizer.param_groups, strict=True):
        group |= {name: own[name] for name in ("betas", "weight_decay")}
    assert scalars["param_groups"][0]["betas"] == (0.9, 0.99)
    moments = TensorReader(border, read_manifest(border).of_parts(["optim"]))
    restore_optimizer(by_hand.model, by_hand.optimizer, moments, scalars)
    by_hand.fit()
    in_stage, own = checkpoint_tensors(tmp_path / "run", 7), checkpoint_tensors(tmp_path / "alone", 3)
    assert all(torch.equal(in_stage[name], own[name]) for name in own)


def test_no_row_of_a_shared_store_is_logged_twice(straight):
    """Brute force over the log: `chat` goes on in the validation store where `adapt` stood."""
    log = RunLog(straight)
    fed = defaultdict(list)
    for part in part_files(log.folder):
        for period, table in log.by_period(pq.read_table(part)):
            stores = period.data["stores"]
            columns = (table[name].to_pylist() for name in ("store", "shard", "row"))
            for store, shard, row in zip(*columns, strict=True):
                fed[stores[store]["packing"], stores[store]["rows"]].append((period.name, shard, row))
    assert len(fed) == 4
    (shared,) = (rows for rows in fed.values() if {stage for stage, _, _ in rows} == {"adapt", "chat"})
    assert len(shared) > 4 * 3
    for (_, n_rows), rows in fed.items():
        assert len(rows) <= n_rows
        assert len({(shard, row) for _, shard, row in rows}) == len(rows)


def test_checkpoints_have_the_chat_template_from_the_first_conversation_on(
    straight, tmp_path, train_store_dir, plan, flags
):
    """Through a later stage and a run that starts from one of them, both on plain text."""
    chat = {"template": CHAT.template, "end_of_turn": CHAT.end_of_turn}
    assert [read_state(straight / folder_name(step)).get("chat") for step in (7, 8)] == [None, chat]
    run, plain = tmp_path / "run", {"train_data_dir": [str(train_store_dir)]}
    shutil.copytree(straight, run)
    later = {"stages": [*plan, plain | {"name": "later", "steps": 1, "warmup_steps": 0}]}
    open_run(run, train_store_dir, resume="auto", **flags | later).fit()
    own = {"initial_checkpoint_dir": str(run / folder_name(LAST_STEP + 1)), "max_steps": 1, "warmup_steps": 0}
    open_run(tmp_path / "own", train_store_dir, **RUN | own).fit()
    for folder in (run / folder_name(LAST_STEP + 1), tmp_path / "own" / folder_name(1)):
        state = read_state(folder)
        assert state["chat"] == chat
        assert "masked" not in str(state["data"])


def test_a_stage_leaves_no_memory_behind(tmp_path, train_store_dir, flags):
    weights: list[weakref.ref] = []

    class Watched(Trainer):
        def _build_stage(self, stage):
            assert not any(ref() is not None for ref in weights)
            super()._build_stage(stage)
            weights.extend(weakref.ref(parameter) for parameter in self.model.parameters())

    open_run(tmp_path, train_store_dir, Watched, **flags).fit()
    assert len({id(ref) for ref in weights}) > 3


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_no_stage_begins_without_the_border_on_disk(tmp_path, train_store_dir, flags, capsys, policy):
    run = tmp_path / "run"
    options = flags | {"save_step_interval": 0, "on_save_error": policy}
    trainer = open_run(run, train_store_dir, **options)
    with (
        file_size_limit(50_000),
        pytest.raises(InputError, match=r"checkpoint of step 4 was not saved: .*too large"),
    ):
        trainer.fit()
    assert f"stage long does not begin: it would start from {run / folder_name(4)}" in capsys.readouterr().err
    assert not (run / "done").exists()
    assert not (run / "requeue").exists()  # a batch script would start it again
    assert trainer.step == 4
    trainer.run_lock.close()
    open_run(run, train_store_dir, resume="auto", **options).fit()
    assert len(losses(run)) == LAST_STEP


def test_what_cannot_be_written_at_a_border_ends_the_run_there_with_its_cause(
    tmp_path, train_store_dir, flags
):
    class Full(Trainer):
        def save_checkpoint(self):
            self.errors.failed("metrics", "metrics cannot be written: the disk is full")
            super().save_checkpoint()

    trainer = open_run(tmp_path, train_store_dir, Full, **flags | {"save_step_interval": 0})
    with pytest.raises(InputError, match="metrics cannot be written"):
        trainer.fit()
    assert (trainer.step, trainer.stage.name) == (4, "adapt")
    assert list_checkpoints(tmp_path)[-1][0] == 4


def test_a_stop_at_a_border_marks_and_is_continued(tmp_path, train_store_dir, straight, flags, capsys):
    class Stopped(Trainer):
        def train_step(self, *arguments):
            done = super().train_step(*arguments)
            if self.step == BORDERS[0]:
                self.stop_request.limit(0)  # as --max_time, or a signal, in the last step
            return done

    open_run(tmp_path, train_store_dir, Stopped, **flags).fit()
    assert "stopped at step 4 (max_time); continue with --resume auto" in capsys.readouterr().out
    assert (tmp_path / "requeue").is_file()
    assert list_checkpoints(tmp_path)[-1][0] == 4
    open_run(tmp_path, train_store_dir, resume="auto", **flags).fit()
    assert "stage long begins after step 4" in capsys.readouterr().out
    assert_same_checkpoint(tmp_path, straight, LAST_STEP)
    assert losses(tmp_path) == losses(straight)
