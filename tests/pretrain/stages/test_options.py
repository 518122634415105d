"""What the options of stages resolve to, and what is refused before anything is opened."""

import dataclasses
import json

import pytest

from lit_gpt.cli import InputError, parse_options
from pretrain.options import TrainOptions
from pretrain.stages.options import STAGE_OPTIONS, resolve_stages
from tests.pretrain.running import train

RUN = TrainOptions(["de"], out_dir="out", learning_rate=1e-3, block_size=64)
FIRST = {"name": "adapt", "steps": 30}


def resolve(*stages, **run):
    return resolve_stages(dataclasses.replace(RUN, stages=list(stages), **run))


def test_stages_have_the_runs_options_but_for_what_they_say():
    first, second, third = resolve(
        FIRST,
        {"name": "long", "steps": "20", "block_size": 128, "train_data_dir": "en:2", "learning_rate": "1e-4"},
        {"name": "head", "steps": 5, "trainable": ["lm_head"]},
    )
    assert [stage.steps_before for stage in (first, second, third)] == [0, 30, 50]
    assert third.last_step == 55
    assert first.options == dataclasses.replace(RUN, max_steps=30)
    assert (second.options.block_size, third.options.block_size) == (128, 64)
    assert (second.options.train_data_dir, second.options.learning_rate) == (["en:2"], 1e-4)
    assert [stage.fresh_optimizer for stage in (first, second, third)] == [False, False, True]
    assert resolve_stages(RUN)[0].name == ""


def test_moments_are_kept_or_fresh_as_asked():
    head, body = {"trainable": ["lm_head"]}, {"trainable": ["transformer.h"]}
    kept = resolve({**FIRST, **head}, {"name": "b", "steps": 1, **head, "optimizer": "keep"})
    assert not kept[1].fresh_optimizer
    assert resolve(FIRST, {"name": "b", "steps": 1, "optimizer": "fresh"})[1].fresh_optimizer
    with pytest.raises(InputError, match=r"stage b: optimizer: keep .*; write optimizer: fresh"):
        resolve({**FIRST, **head}, {"name": "b", "steps": 1, **body, "optimizer": "keep"})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is an empty list"),
        ([{"steps": 3}], "stage 1: name is missing"),
        ([{"name": "a"}], "stage a: steps is missing"),
        ([FIRST, FIRST], "stage adapt: there are two of this name"),
        ([{**FIRST, "blocksize": 3}], "stage adapt: blocksize: no such key; did you mean block_size?"),
        ([{**FIRST, "seed": 3}], "seed cannot differ between stages: give it for the whole run, or begin"),
        (
            [{**FIRST, "precision": "32-true"}],
            "precision cannot differ between stages: give it for the whole",
        ),
        ([{**FIRST, "shuffle_window": 2}], "shuffle_window cannot differ between stages: give it for the"),
        ([{**FIRST, "model_name": "x"}], "model_name cannot .*: make an initial checkpoint of the new shape"),
        ([{**FIRST, "max_steps": 3}], "max_steps cannot differ between stages: write steps"),
        ([{**FIRST, "stages": []}], "stages cannot differ between stages"),
        ([{**FIRST, "steps": 0}], "stage adapt: steps: must be at least 1, not 0"),
        ([{**FIRST, "steps": 2.5}], "steps: 2.5 is not a whole number"),
        ([{**FIRST, "learning_rate": float("nan")}], "learning_rate: nan is not a finite number"),
        ([{**FIRST, "learning_rate": None}], "learning_rate: null is not a number"),
        ([{**FIRST, "optimizer": "reset"}], "optimizer: 'reset' is not a choice; did you mean fresh"),
        ([{**FIRST, "optimizer": "keep"}], "optimizer: keep, but there is no stage before it"),
        ([{"name": "a/../b", "steps": 1}], "use letters, digits, _ . and - only"),
        ([{"name": "two\nlines", "steps": 1}], "use letters, digits, _ . and - only"),
        ([{"name": "", "steps": 1}], "use letters, digits, _ . and - only"),
        ([{"name": 3, "steps": 1}], "stage 3: name: 3 is not text"),
        ([FIRST, {"name": "b", "steps": 1, "min_lr": 1}], "stage b: --min_lr 1.0 is above --learning_rate"),
        ([{**FIRST, "seed": 3, "lr": 1, "steps": "x"}], "steps: 'x' is not a whole number; seed .*; lr: no"),
        ([{**FIRST, "global_batch_size": 3}], "stage adapt: --global_batch_size 3 is not divisible by 2"),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_the_stage(stages, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(*stages, devices=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [{"max_steps": 5}, {"max_epochs": 1.0}])
def test_the_length_of_the_run_is_that_of_its_stages(length):
    with pytest.raises(InputError, match="are for runs without stages: each stage has its steps"):
        resolve(FIRST, **length)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[adapt]", "'adapt' is not of the form {name: value}"),
        ("adapt", "'adapt' is not of the form {name: value}"),
        ("[[{name: a, steps: 1}]]", "is not of the form {name: value}"),
        ("[{1: a}]", "stage 1: name is missing; steps is missing; 1: no such key"),
    ],
)
def test_what_is_no_list_of_tables_is_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(f"train_data_dir: de\nout_dir: out\nstages: {text}\n")
    with pytest.raises(InputError, match=message):
        resolve_stages(parse_options(TrainOptions, ["--config", str(tmp_path / "run.yaml")]))


def test_each_key_of_a_stage_is_an_option():
    assert set(STAGE_OPTIONS) < {field.name for field in dataclasses.fields(TrainOptions)}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"blocksize": 32}, "error: stage b: blocksize: no such key; did you mean block_size?"),
        ({"train_data_dir": "none"}, "error: stage b: none"),  # found once the first stage is opened
    ],
)
def test_the_command_ends_with_2_and_one_line_before_there_is_a_run(
    tmp_path, train_store_dir, second, message
):
    stages = [{"name": "a", "steps": 2}, {"name": "b", "steps": 2} | second]
    result = train(
        tmp_path / "run", train_store_dir, max_steps=None, block_size=64, stages=json.dumps(stages)
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
