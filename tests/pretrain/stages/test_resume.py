"""Which stage a checkpoint is continued in, and which edits of the plan are refused."""

import shutil

import pytest

from lit_gpt.checkpoint.folder import folder_name, read_state
from lit_gpt.cli import InputError
from pretrain.datapoints.replay import Replay
from pretrain.launch.examine import examine
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from pretrain.stages.resume import stage_to_continue
from pretrain.stages.stage import open_stages
from tests.pretrain.running import SMALL, losses, open_run
from tests.pretrain.stages.three_stages import LAST_STEP, RUN, three_stages


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train_store_dir, val_store_dir, masked_store_dir):
    """A complete run with the checkpoint of every step."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    stages = three_stages(train_store_dir, val_store_dir, masked_store_dir)
    open_run(folder, train_store_dir, stages=stages, **RUN | {"keep_last": 0}).fit()
    return folder


@pytest.fixture
def plan(train_store_dir, val_store_dir, masked_store_dir):
    return three_stages(train_store_dir, val_store_dir, masked_store_dir)


def continued(run, step, stages, train, **flags):
    """The stage of the next step after a checkpoint, or of step 1 without stages."""
    options = options_of(run, stages, train, **flags)
    folder = run / folder_name(step)
    opened = open_stages(resolve_stages(options))
    return stage_to_continue(folder, read_state(folder), opened, [stage.data for stage in opened])


def options_of(run, stages, train, **flags):
    settings = SMALL | {"train_data_dir": [str(train)], "out_dir": str(run)} | RUN | flags
    return TrainOptions(**settings | {"stages": stages})


def test_a_checkpoint_is_continued_in_the_stage_of_its_next_step(straight, plan, train_store_dir):
    names = [continued(straight, step, plan, train_store_dir).name for step in (1, 3, 4, 6, 7, LAST_STEP)]
    assert names == ["adapt", "adapt", "long", "long", "chat", "chat"]


@pytest.mark.parametrize(
    ("step", "number", "change", "message"),
    [
        (5, 0, {"learning_rate": 1.0}, "adapt is finished and cannot be changed: learning_rate was 0.003"),
        (5, 0, {"steps": 5}, "adapt is finished and cannot be changed: steps was 4 and is 5"),
        (5, 0, {"steps": 2}, "adapt is finished and cannot be changed: steps was 4 and is 2"),
        (5, 0, {"warmup_steps": 1}, "warmup_steps was 2 and is 1"),
        (
            5,
            0,
            {"name": "first"},
            "stage adapt is finished .* it was stage 1 of the run, where the options have first",
        ),
        (5, 0, {"block_size": 32}, "block_size was 64 and is 32"),
        (5, 0, {"train_data_dir": "TRAIN"}, "there were 2 stores and are 1"),
        (5, 1, {"global_batch_size": 4}, "long is begun and cannot be changed: global_batch_size was 8 and"),
        (5, 1, {"block_size": 64}, "long is begun and cannot be changed: block_size was 128 and is 64"),
        (5, 1, {"trainable": ["lm_head"]}, "trainable was None and is .*lm_head"),
        (5, 1, {"optimizer": "fresh"}, "fresh_optimizer was False and is True"),
        (5, 1, {"train_data_dir": "TRAIN@0-50"}, "the share of .* was all and is 0-50"),
        (6, 1, {"steps": 1}, "stage long: 2 steps of it are done; give at least as many"),
        (4, 0, {"beta1": 0.8}, "adapt is finished and cannot be changed: beta1 was 0.9 and is 0.8"),
    ],
)
def test_what_was_trained_cannot_be_edited(straight, plan, train_store_dir, step, number, change, message):
    if data := change.get("train_data_dir"):
        change = {"train_data_dir": data.replace("TRAIN", str(train_store_dir))}
    plan[number] |= change
    with pytest.raises(InputError, match=message) as caught:
        continued(straight, step, plan, train_store_dir)
    assert "\n" not in str(caught.value)


def test_a_job_that_the_checkpoint_would_refuse_is_not_planned(straight, plan, train_store_dir):
    plan[2] |= {"learning_rate": 1.0}
    assert examine(options_of(straight, plan, train_store_dir)).first_step == LAST_STEP
    plan[0] |= {"warmup_steps": 1}
    with pytest.raises(InputError, match="stage adapt is finished and cannot be changed: warmup_steps was 2"):
        examine(options_of(straight, plan, train_store_dir))
    with pytest.raises(InputError, match="is of a run that has stages"):
        examine(options_of(straight, None, train_store_dir, max_steps=9))


def test_what_is_to_come_may_be_edited(straight, plan, train_store_dir):
    plan[1] |= {"learning_rate": 5e-3, "steps": 9, "micro_batch_size": 1}
    plan[2] |= {"block_size": 48, "name": "other", "optimizer": "keep"}
    stage = continued(straight, 5, plan, train_store_dir)
    assert (stage.name, stage.schedule.last_step, stage.schedule.peak) == ("long", 13, 5e-3)
    assert continued(straight, 5, [*plan, {"name": "more", "steps": 1}], train_store_dir).name == "long"
    assert continued(straight, 5, plan[:2], train_store_dir).name == "long"
    # A stage that ends where the checkpoint stands is over; one that is lengthened there is not.
    assert continued(straight, 5, [plan[0], plan[1] | {"steps": 1}, plan[2]], train_store_dir).name == "other"
    longer = [plan[0] | {"steps": 6}, *plan[1:]]
    assert continued(straight, 4, longer, train_store_dir).name == "adapt"


def test_conversations_that_do_not_fit_are_found_before_anything_is_packed(
    straight, plan, train_store_dir, masked_store_dir
):
    plan[2] |= {"block_size": 16}
    too_long = rf"{masked_store_dir} is masked, .*: rows of block_size 16 take 17; raise block_size"
    with pytest.raises(InputError, match=f"stage chat: {too_long}"):
        examine(options_of(straight / "none", plan, train_store_dir))
    validated = {"val_data_dir": [str(masked_store_dir)], "block_size": 16, "max_steps": 9}
    with pytest.raises(InputError, match=too_long):
        examine(options_of(straight / "none", None, train_store_dir, **validated))


def test_runs_with_and_without_stages_do_not_continue_one_another(
    straight, plan, tmp_path, train_store_dir, capsys
):
    with pytest.raises(InputError, match="is of a run that has stages: continue it as it was, or start ano"):
        continued(straight, 5, None, train_store_dir, max_steps=9)
    with pytest.raises(InputError, match="was saved in stage long, which the options no longer have"):
        continued(straight, 5, plan[:1], train_store_dir)
    open_run(tmp_path, train_store_dir, max_steps=2).fit()
    with pytest.raises(InputError, match="is of a run that has no stages"):
        continued(tmp_path, 2, plan, train_store_dir)


def test_an_earlier_stage_is_gone_back_to_and_a_complete_run_lengthened(
    straight, plan, tmp_path, train_store_dir, capsys
):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    flags = RUN | {"keep_last": 0}
    open_run(run, train_store_dir, stages=plan, resume="true", **flags).fit()
    assert f"already complete: step {LAST_STEP} of {LAST_STEP}" in capsys.readouterr().out
    plan[2]["steps"] += 2
    open_run(run, train_store_dir, stages=plan, resume="auto", **flags).fit()
    assert losses(run)[:LAST_STEP] == losses(straight)
    assert len(losses(run)) == LAST_STEP + 2
    plan[2] = {"name": "other", "steps": 1}  # what followed the checkpoint is given up
    open_run(run, train_store_dir, stages=plan, resume=str(run / folder_name(5)), **flags).fit()
    assert len(losses(run)) == 8
    assert losses(run)[:7] == losses(straight)[:7]
    assert (run / f"{folder_name(7)}.superseded").is_dir()
    assert read_state(run / folder_name(8))["stages"][2]["name"] == "other"
    report = list(Replay(run).verify())[-1]
    assert (report.messages, report.steps) == ([], 8)
