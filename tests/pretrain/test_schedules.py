import math

import pytest

from lit_gpt.cli import InputError
from pretrain.options import TrainOptions
from pretrain.schedules import Schedule, keep_schedule, make_schedule


def make(name, **changes):
    settings = {"peak": 1.0, "final": 0.1, "warmup_steps": 10, "max_steps": 110, "decay_steps": 20}
    return Schedule(name, **(settings | changes))


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_reaches_the_peak(name):
    schedule = make(name)
    assert schedule.learning_rate(1) == pytest.approx(0.1)
    assert schedule.learning_rate(10) == 1.0


def test_cosine_follows_its_formula():
    schedule = make("cosine")
    for step in (11, 35, 60, 109, 110):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        assert schedule.learning_rate(step) == pytest.approx(expected)


def test_wsd_is_stable_then_decays_to_the_end():
    schedule = make("wsd")
    assert {schedule.learning_rate(step) for step in range(10, 91)} == {1.0}
    assert schedule.learning_rate(100) == pytest.approx(0.55)
    assert schedule.learning_rate(110) == pytest.approx(0.1)


def test_a_decay_may_start_at_any_checkpoint_of_the_stable_phase():
    trunk = make("wsd", max_steps=1000)
    branch = make("wsd", max_steps=520, decay_steps=20)
    assert branch.learning_rate(500) == trunk.learning_rate(500) == 1.0
    assert branch.learning_rate(520) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear"])
def test_after_the_last_step_it_stays_at_the_final_rate(name):
    assert make(name).learning_rate(10_000) == pytest.approx(0.1)


def test_without_warm_up_the_first_step_has_a_finite_rate():
    assert make("linear", warmup_steps=0, max_steps=1).learning_rate(1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("given", "steps", "warmup"),
    [
        ({}, 1000, 100),
        ({"max_steps": 6}, 6, 0),
        ({"max_steps": 466_509}, 466_509, 2000),
        ({"max_steps": 6, "warmup_steps": 2000}, 6, 0),
        ({"max_steps": 6, "warmup_steps": 6}, 6, 6),
        ({"max_steps": 100, "warmup_steps": 0}, 100, 0),
        ({"max_epochs": 1}, 25, 2),
        ({"max_epochs": 0.1}, 3, 0),
        ({"max_epochs": 2.1}, 53, 5),
        ({"max_epochs": 3, "warmup_steps": 5}, 75, 5),
    ],
)
def test_what_is_not_given_follows_from_the_length(given, steps, warmup):
    schedule = make_schedule(TrainOptions(global_batch_size=40, **given), rows_per_epoch=1000)
    assert (schedule.max_steps, schedule.warmup_steps) == (steps, warmup)
    assert schedule.final == pytest.approx(schedule.peak / 10)


def test_rounding_adds_no_step():
    # 1.1 * 1000 is 1100.0000000000002.
    assert make_schedule(TrainOptions(global_batch_size=10, max_epochs=1.1), 1000).max_steps == 110


@pytest.mark.parametrize(
    "given",
    [
        {"min_lr": 1.0},
        {"lr_schedule": "wsd", "max_steps": 100, "warmup_steps": 50, "decay_steps": 60},
        {"lr_schedule": "wsd", "max_epochs": 1, "decay_steps": 26},
    ],
)
def test_parts_that_do_not_fit_are_refused(given):
    with pytest.raises(InputError, match=r"--(min_lr|decay_steps) "):
        make_schedule(TrainOptions(global_batch_size=40, **given), rows_per_epoch=1000)


@pytest.mark.parametrize(
    ("given", "before", "expected"),
    [
        # Of an earlier revision, whose defaults were 100 steps of warm-up, whatever the length, and 4e-5.
        ({}, {"max_steps": 400, "warmup_steps": 100, "min_lr": 4e-5}, (400, 100, 4e-5)),
        ({"max_steps": 9000}, {"max_steps": 400, "warmup_steps": 40, "min_lr": 4e-5}, (9000, 40, 4e-5)),
        ({"max_steps": 9000, "warmup_steps": 7, "min_lr": 0.0}, {"warmup_steps": 40}, (9000, 7, 0.0)),
        ({}, {"max_steps": 50, "max_epochs": 2.0, "warmup_steps": 5, "min_lr": 1e-5}, (50, 5, 1e-5)),
        ({"max_epochs": 4}, {"max_steps": 50, "max_epochs": 2.0, "warmup_steps": 5}, (100, 5, 1e-4)),
    ],
)
def test_a_resumed_run_keeps_what_is_not_given(given, before, expected):
    options = TrainOptions(["store"], out_dir="out", global_batch_size=40, learning_rate=1e-3, **given)
    schedule = make_schedule(keep_schedule(options, before), rows_per_epoch=1000)
    assert (schedule.max_steps, schedule.warmup_steps, schedule.final) == pytest.approx(expected)


def test_a_checkpoints_nonsense_is_refused():
    with pytest.raises(InputError, match="max_steps"):
        keep_schedule(TrainOptions(["store"], out_dir="out"), {"max_steps": "../../x"})
