"""RoPE of a run: its options, the initial checkpoint, and transformers on what comes out."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_gpt.checkpoint.folder import folder_name
from lit_gpt.cli import InputError, parse_options
from lit_gpt.model.config import ModelConfig
from pretrain.launch.examine import examine
from pretrain.options import TrainOptions
from pretrain.shape import initial_shape, length_warnings, resolve_shape
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from tests.lit_gpt.model.rope_scalings import scalings
from tests.pretrain.running import assert_same_checkpoint, open_run
from tests.scripts import our_model
from tests.scripts.checkpoints import write_checkpoint

OLD, NEW = 32, 128  # lengths
PLAIN = ModelConfig.load("tiny_100K", vocab_size=512, block_size=OLD)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaled(scaling, **fields) -> ModelConfig:
    return ModelConfig.load("tiny_100K", vocab_size=512, rope_scaling=scaling, **fields)


def resolved(before: ModelConfig | None, **options) -> ModelConfig:
    return resolve_shape(TrainOptions(**{"model_name": "tiny_100K", "block_size": NEW} | options), before)


def test_options_win_over_the_shape_and_the_original_length_is_that_of_the_weights():
    found = resolved(PLAIN, rope_base=5e5, rope_scaling={"rope_type": "linear", "factor": 4})
    assert (found.block_size, found.rope_base) == (NEW, 5e5)
    assert found.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    assert type(found.rope_scaling["factor"]) is float  # transformers warns of a whole number
    yarn = {"rope_type": "yarn", "factor": 4.0}
    first = resolved(PLAIN, rope_scaling=yarn)
    assert first.rope_scaling == {**yarn, "original_max_position_embeddings": OLD}
    # A later stage, or another run, that scales further counts from the same length.
    further = resolved(first, block_size=256, rope_scaling=yarn | {"factor": 8})
    assert further.rope_scaling["original_max_position_embeddings"] == OLD
    assert resolved(None, block_size=None) == ModelConfig.load("tiny_100K")
    assert resolved(None, rope_scaling={"rope_type": "default"}).rope_scaling is None


@pytest.mark.parametrize(
    ("before", "options", "message"),
    [
        (
            None,
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type None is unknown; known: default",
        ),
        (None, {"rope_scaling": {"rope_type": ["yarn"]}}, "is unknown"),
        (None, {"rope_scaling": {"rope_type": "linear"}}, "linear needs factor"),
        (None, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "not positive"),
        (None, {"rope_scaling": {"rope_type": "linear", "factor": -2}}, "not positive"),
        (None, {"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "cannot be computed with"),
        (None, {"rope_scaling": {"rope_type": "linear", "facter": 2}}, "linear has no facter; it has factor"),
        (None, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "needs original_max_position"),
        (
            PLAIN,
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
            f"trained on {OLD} positions without scaling, but original_max_position_embeddings is 64",
        ),
        (
            scaled(scalings(OLD)["yarn"]),
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            r"yarn there and linear here; give --rope_scaling '{rope_type: yarn, factor: 4.0, orig.*: 32}'",
        ),
        (scaled(scalings(OLD)["linear"]), {}, "scaled by linear there and default here"),
        (scaled(None, rope_base=500000.0), {}, r"rope_base is 500000 there and 10000 .*--rope_base 500000"),
        (scaled(None, norm_eps=1e-6), {}, "norm_eps is 1e-06 there and 1e-05 in --model_name tiny_100K"),
        (scaled(None, n_query_groups=4), {}, "n_query_groups is 4 there and 2 in"),
        (PLAIN, {"model_name": "tiny_3M"}, "n_layer is 2 there and 4 in --model_name tiny_3M; n_head is"),
    ],
)
def test_what_contradicts_itself_or_the_weights_is_refused(before, options, message):
    with pytest.raises(InputError, match=message) as caught:
        resolved(before, **options)
    assert "\n" not in str(caught.value)


def test_a_base_is_changed_only_by_saying_so():
    assert resolved(scaled(None, rope_base=500000.0), rope_base=1e6).rope_base == 1e6


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rows_beyond_the_scaled_length_are_warned_of(kind):
    for block_size, n_warnings in ((4 * OLD, 0), (4 * OLD + 1, 1)):
        found = resolved(PLAIN, block_size=block_size, rope_scaling={"rope_type": kind, "factor": 4.0})
        assert len(length_warnings(found, PLAIN)) == n_warnings
    assert not length_warnings(resolved(PLAIN, block_size=512), PLAIN)


def test_flag_and_yaml_give_the_same(tmp_path):
    text = "{rope_type: linear, factor: 2.0}"
    (tmp_path / "run.yaml").write_text(f"rope_scaling: {text}\nrope_base: 5e5\n")
    by_flag = parse_options(TrainOptions, ["--rope_scaling", text, "--rope_base", "500000"])
    assert by_flag == parse_options(TrainOptions, ["--config", str(tmp_path / "run.yaml")])
    assert by_flag.rope_scaling == {"rope_type": "linear", "factor": 2.0}


def test_a_mistake_is_found_before_data_is_opened(tmp_path, monkeypatch):
    initial = write_checkpoint(tmp_path / folder_name(100), config=scaled(scalings(OLD)["yarn"]))
    options = TrainOptions([str(tmp_path / "none")], out_dir=str(tmp_path), model_name="tiny_100K")
    options.initial_checkpoint_dir = str(initial)
    with pytest.raises(InputError, match="scaled by yarn there"):
        open_run(tmp_path / "run", tmp_path / "none", initial_checkpoint_dir=str(initial))
    with pytest.raises(InputError, match="scaled by yarn there"):
        examine(options)
    options.initial_checkpoint_dir = str(tmp_path / "missing")
    with pytest.raises(InputError, match=r"--initial_checkpoint_dir .*missing: no such folder"):
        initial_shape(options)
    options.out_dir, options.resume = str(initial.parent), "auto"
    assert initial_shape(options) is None  # a run that exists does not read it any more


def test_stages_lengthen_rows_and_train_parts_and_a_border_is_a_resume(tmp_path, train_store_dir, capsys):
    longer = {"rope_scaling": {"rope_type": "yarn", "factor": 2}, "trainable": ["*.qkv", "lm_head[70:]"]}
    stages: list[dict] = [
        {"name": "short", "steps": 2, "block_size": 64},
        {"name": "long", "steps": 2, "block_size": 128, **longer},
        {"name": "too_long", "steps": 2, "block_size": 256, **longer},
    ]
    flags = {"max_steps": None, "warmup_steps": 0, "save_step_interval": 1, "keep_last": 0}
    straight = tmp_path / "straight"
    open_run(straight, train_store_dir, stages=stages, **flags).fit()
    said = capsys.readouterr().out
    assert said.count("warning: rows of 256 are longer than RoPE is scaled to: 2 x 64") == 1
    for step in (2, 3):  # before a stage of other rows and parameters, and within it
        run = tmp_path / str(step)
        shutil.copytree(straight, run)
        for later in range(step + 1, 7):
            shutil.rmtree(run / folder_name(later))
        open_run(run, train_store_dir, resume="auto", stages=stages, **flags).fit()
        assert_same_checkpoint(run, straight, 6)
    unscaled = [*stages, {"name": "unscaled", "steps": 1, "block_size": 128}]
    with pytest.raises(InputError, match=r"stage unscaled: .*RoPE is scaled by yarn there and default here"):
        open_run(tmp_path / "x", train_store_dir, stages=unscaled, **flags)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_run_that_scales_exports_what_transformers_computes(tmp_path, train_store_dir, kind, capsys):
    """Past the old length, after steps on longer rows; config.json also says it in transformers 4's words."""
    initial = write_checkpoint(tmp_path / "initial", config=PLAIN)
    given = {key: value for key, value in scalings(OLD)[kind].items() if not key.startswith("original")}
    flags = {"initial_checkpoint_dir": str(initial), "rope_scaling": given, "block_size": NEW, "max_steps": 2}
    flags |= {"learning_rate": 1e-4, "min_lr": 0.0}
    open_run(tmp_path / "run", train_store_dir, **flags).fit()
    assert "longer than RoPE" not in capsys.readouterr().out
    resumed = open_run(tmp_path / "run", train_store_dir, resume="auto", **flags)
    resumed.fit()
    checkpoint = tmp_path / "run" / folder_name(2)
    flags |= {"initial_checkpoint_dir": None, "rope_scaling": scalings(OLD)[kind] | {"factor": 2.0}}
    with pytest.raises(InputError, match=r"model\.rope_scaling\.factor is .* in the checkpoint, 2\.0 here"):
        open_run(tmp_path / "other", train_store_dir, resume=str(checkpoint), **flags)

    convert(ConvertOptions(checkpoint, tmp_path / "hf"))
    written = json.loads((tmp_path / "hf/config.json").read_text())
    assert written["rope_scaling"] == scalings(OLD)[kind]
    assert (written["max_position_embeddings"], written["rope_theta"]) == (NEW, 10000.0)
    read = AutoConfig.from_pretrained(tmp_path / "hf")
    assert read.rope_parameters == {**scalings(OLD)[kind], "rope_theta": 10000.0}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.randint(512, (NEW,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    ours = our_model.logits(our_model.load(checkpoint), ids)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    without = our_model.load(initial)
    assert (our_model.logits(without, ids)[OLD:] - expected[OLD:]).abs().max() > 100 * 1e-4
