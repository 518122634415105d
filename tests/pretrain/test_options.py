import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.checkpoint.folder import write_state
from lit_gpt.cli import InputError, parse_options
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.option_types import parse_duration
from pretrain.options import TrainOptions
from pretrain.schedules import make_schedule
from pretrain.stages.options import resolve_stages
from pretrain.trainable import frozen_rows

ROOT = Path(__file__).resolve().parents[2]


def test_all_mistakes_are_in_one_message():
    options = TrainOptions(global_batch_size=10, devices=4, max_steps=5, max_epochs=1)
    with pytest.raises(InputError) as error:
        options.check()
    message = str(error.value)
    for part in ("--train_data_dir", "--out_dir", "8 and 12", "--max_epochs"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("learning_rate", "grad_clip") for value in (math.nan, math.inf, -1)),
        *((name, value) for name in ("devices", "num_nodes") for value in (0, -1, 10**400, None)),
        ("beta2", 1.0),
        ("grad_clip", "much"),
        ("cache_gb", 10**400),
        ("seed", 2**63),
        ("max_time", "1h"),
        ("on_save_error", "hope"),
        ("float8", 1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name, value):
    options = TrainOptions(train_data_dir=["x"], out_dir="y", **{name: value})
    with pytest.raises(InputError, match=f"^--{name}: ") as error:
        options.check()
    assert len(str(error.value)) < 200


def test_a_batch_smaller_than_the_ranks_names_the_nearest_that_works():
    with pytest.raises(InputError, match="nearest that are: 4"):
        TrainOptions(train_data_dir=["x"], out_dir="y", global_batch_size=2, devices=4).check()


def test_a_flag_wins_over_the_files_other_way_to_say_how_long(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("max_steps: 5\n")
    options = parse_options(TrainOptions, ["--config", str(config), "--max_epochs", "0.5"])
    assert (options.max_steps, options.max_epochs) == (None, 0.5)
    config.write_text("max_epochs: 2\n")
    options = parse_options(TrainOptions, ["--max_steps", "7", "--config", str(config)])
    assert (options.max_steps, options.max_epochs) == (7, None)
    both = parse_options(TrainOptions, ["--max_steps", "7", "--max_epochs", "1"])
    with pytest.raises(InputError, match="give one of them"):
        both.check()


@pytest.mark.parametrize("config", sorted((ROOT / "pretrain/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(config):
    flags = ["--config", str(config), "--train_data_dir", "store", "--out_dir", "out"]
    assert resolve_stages(parse_options(TrainOptions, flags))
    assert all(len(line) <= 120 for line in config.read_text().splitlines())


def stages_of(preset):
    """Data, tokens a step and tokens of each stage."""
    flags = ["--config", str(ROOT / f"pretrain/configs/{preset}.yaml"), "--out_dir", "out"]
    stages = [stage.options for stage in resolve_stages(parse_options(TrainOptions, flags))]
    sizes = [options.global_batch_size * (options.block_size or 2048) for options in stages]
    return [
        (options.train_data_dir, size, size * options.max_steps)
        for options, size in zip(stages, sizes, strict=True)
    ]


def test_presets_train_on_what_their_sources_state():
    assert sum(tokens for *_, tokens in stages_of("leolm")) == pytest.approx(65e9, rel=1e-3)
    assert sum(tokens for *_, tokens in stages_of("occiglot")) == pytest.approx(114e9, rel=1e-3)
    assert stages_of("phoenix") == [(["data/chat"], 512 * 2048, 228 * 512 * 2048)]
    growing = stages_of("growlength")
    assert {size for _, size, _ in growing} == {2**19}
    shares = [entry.partition("@")[2].split("-") for [entry], *_ in growing]
    assert [low for low, _ in shares] == ["0", *(high for _, high in shares[:-1])]  # no document twice
    assert shares[-1][1] == "100"
    tokens = [tokens for *_, tokens in growing]
    assert [int(high) - int(low) for low, high in shares] == [round(100 * n / sum(tokens)) for n in tokens]


def test_a_preset_of_a_new_vocabulary_finds_its_rows(tmp_path, monkeypatch):
    (tmp_path / "checkpoints/extended").mkdir(parents=True)
    write_state(tmp_path / "checkpoints/extended", {"extension": {"base": "0", "first_new_id": 320}})
    monkeypatch.chdir(tmp_path)
    config = ModelConfig.load("tiny_100K", vocab_size=384)
    wte, head, names = "transformer.wte.weight", "lm_head.weight", parameter_shapes(config)
    blocks = {name: ((0, shape[0]),) for name, shape in names.items() if name not in (wte, head)}
    new, all_of = ((0, 320),), ((0, 384),)
    expected = {
        "vocabulary": [{wte: new, head: new}, None],
        "eeve": [
            *({wte: new, head: all_of}, {wte: all_of, head: new}, {wte: new, head: new}),
            *({wte: all_of}, {wte: new}, None),
        ],
    }
    for preset, stages in expected.items():
        flags = ["--config", str(ROOT / f"pretrain/configs/{preset}.yaml"), "--out_dir", "out"]
        resolved = [stage.options for stage in resolve_stages(parse_options(TrainOptions, flags))]
        for options, frozen in zip(resolved, stages, strict=False):
            assert frozen_rows(options.trainable, config) == ({} if frozen is None else blocks | frozen)
    assert resolved[6].trainable == ["transformer.h"]
    assert sum(s.max_steps * s.global_batch_size * s.block_size for s in resolved) == pytest.approx(
        2e9, rel=0.01
    )


def test_the_infinite_schedule_has_no_re_warming():
    flags = ["--config", str(ROOT / "pretrain/configs/infinite_schedule.yaml"), "--out_dir", "out"]
    schedules = [make_schedule(s.options, None) for s in resolve_stages(parse_options(TrainOptions, flags))]
    for before, after in itertools.pairwise(schedules):
        assert after.warmup_steps == 0
        assert after.learning_rate(1) <= after.peak == pytest.approx(before.learning_rate(before.max_steps))


def test_the_7b_configuration_has_the_originals_values():
    options = parse_options(TrainOptions, ["--config", str(ROOT / "pretrain/configs/LLaMmlein_7B.yaml")])
    assert (options.global_batch_size, options.learning_rate, options.min_lr) == (1024, 2.5e-4, 4e-6)
    schedule = make_schedule(options, None)
    assert (schedule.warmup_steps, schedule.max_steps, options.save_step_interval) == (2000, 1430512, 10000)
    assert (options.weight_decay, options.beta1, options.beta2, options.grad_clip) == (0.1, 0.9, 0.95, 1.0)
    assert options.lr_schedule == "cosine"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:01:30", 90),
        ("1-02:00:00", 93600),
        ("05:00", 300),
        ("48:00:00", 172800),
        ("90", 5400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("0-00:01", 60),
        ("100:00", 6000),
        ("0:0:1", 1),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1h", "-1:00:00", "1:2:3:4", "aa:bb", "1-", "1-1:1:1:1", "0", "0-00:00", "-5", "1:", "９"]
)
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match=r"time|longer"):
        parse_duration(text)


@pytest.mark.parametrize(
    "flags",
    [
        ["--micro_batch_size", "many"],
        ["--no_such_flag", "1"],
        ["--config", "missing.yaml"],
        ["--lr_schedule", "zigzag"],
        ["--train_data_dir", "store", "--out_dir", "out", "--resume", "false"],
        [],
    ],
)
def test_the_command_refuses_in_one_line_with_exit_code_2(flags):
    command = [sys.executable, str(ROOT / "pretrain/tinyllama_fabric.py"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
