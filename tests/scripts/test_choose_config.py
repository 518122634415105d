"""The choice of a shape: its arithmetic, and the real command with real steps."""

import subprocess
import sys

import pytest

from lit_gpt.cli import parse_options
from lit_gpt.model.config import ModelConfig
from pretrain.options import TrainOptions
from scripts.bench.measurement import Measurement
from scripts.choose_config import SHAPES, Choice, _fit
from tests.pretrain.running import ROOT, environment

GIB = 2**30


def choice(name: str, tokens: float) -> Choice:
    config = ModelConfig.load(name).with_vocab_of(32_000)
    measured = Measurement(seconds=[0.1] * 12, slots=1e4, peak_bytes=10 * GIB, device="a device")
    return Choice(TrainOptions(model_name=name), config, measured, tokens)


@pytest.mark.parametrize(("name", "tokens"), [("llama_15M", 1e8), ("llama_100M", 2.4e9), ("llama_1B", 2e10)])
def test_batch_and_rate_are_those_of_the_law(name, tokens):
    """Within the rounding of the batch to a power of two: DeepSeek LLM, figures of section 3.1."""
    chosen = choice(name, tokens)
    options = chosen.final_options()
    flops = 6 * chosen.config.n_parameters * tokens
    batch = options.global_batch_size * chosen.config.block_size
    assert 0.7 < batch / (0.2920 * flops**0.3271) < 1.42
    assert options.learning_rate == pytest.approx(min(0.3118 * flops**-0.125, 2e-3), rel=0.05)
    assert options.max_steps * batch == pytest.approx(tokens, rel=0.01)
    assert options.min_lr == pytest.approx(options.learning_rate / 10)
    options.train_data_dir, options.out_dir = ["store"], "out"
    options.check()


@pytest.mark.parametrize("memory", [8, 24, 80])
def test_what_fits_a_device_is_fitted_to_it(memory):
    """More memory takes as many rows or more, and a shape that fits at all leaves a fifth free."""
    rows = []
    for name in SHAPES:
        config = ModelConfig.load(name).with_vocab_of(32_000)
        options = _fit(TrainOptions(model_name=name), config, memory * GIB)
        rows.append(options.micro_batch_size * (1 if options.activation_checkpointing == "none" else 0.01))
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 32
    assert (rows[-1] >= 1) == (memory == 80)  # 1B


@pytest.mark.slow
def test_the_command_writes_what_the_trainer_takes(tmp_path, train_store_dir):
    """The little data of the tests is enough for the smallest shape only, and for seconds of it."""
    flags = [
        "--train_data_dir",
        str(train_store_dir),
        "--hours",
        "0.01",
        "--output",
        str(tmp_path / "c.yaml"),
    ]
    command = [sys.executable, str(ROOT / "scripts/choose_config.py"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert "tokens/s on CPU, 1 thread(s), measured over" in result.stdout
    assert "llama_15M: too little data for" in result.stdout
    written = parse_options(
        TrainOptions,
        ["--config", str(tmp_path / "c.yaml"), "--train_data_dir", "store", "--out_dir", str(tmp_path)],
    )
    written.check()
    assert (written.model_name, written.accelerator) == ("tiny_3M", "cpu")
    assert (tmp_path / "c.yaml").read_text().startswith("# 3,164,416 parameters, ")
    assert "tokens a parameter are few" in result.stdout

    none = subprocess.run(
        [*command[:2], *flags[:2], "--output", "/nowhere/c.yaml"], capture_output=True, text=True
    )
    assert none.returncode == 2
    assert none.stderr.count("\n") == 1
