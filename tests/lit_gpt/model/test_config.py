"""Shapes by name and by file."""

import dataclasses
import json
import math

import pytest

from lit_gpt.cli import InputError
from lit_gpt.model.config import NAMED_SHAPES, ModelConfig


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counted by hand: 2 V d + L (2 d + (H + 2 G) h d + H h d + 3 d f) + d.
    [
        ("LLaMmlein_120M", 2 * 32064 * 768 + 12 * (1536 + 1280 * 768 + 768 * 768 + 3 * 768 * 2048) + 768),
        ("LLaMmlein_1B", 2 * 32064 * 2048 + 22 * (4096 + 2560 * 2048 + 2048**2 + 3 * 2048 * 5632) + 2048),
        ("LLaMmlein_7B", 2 * 32064 * 4096 + 32 * (8192 + 4 * 4096**2 + 3 * 4096 * 11008) + 4096),
    ],
)
def test_named_shapes(name, parameters):
    config = ModelConfig.load(name)
    assert config.n_parameters == parameters
    assert (config.block_size, config.vocab_size) == (2048, 32064)


@pytest.mark.parametrize("name", [name for name in NAMED_SHAPES if name.startswith("llama_")])
def test_shapes_for_one_device_have_the_size_of_their_name(name):
    config = ModelConfig.load(name).with_vocab_of(32_000)
    digits, unit = name.removeprefix("llama_")[:-1], name[-1]
    size = int(digits) * {"M": 1e6, "B": 1e9}[unit]
    assert config.n_parameters == pytest.approx(size, rel=0.1)
    assert config.head_dim == 64


def test_every_named_shape_is_valid_and_survives_json():
    for name in NAMED_SHAPES:
        config = ModelConfig.load(name)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())), origin="test") == config


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "n_layer: 3\nn_head: 6\nn_query_groups: 2\nn_embd: 96\nintermediate_size: 200\nblock_size: 512\n"
        "norm_eps: 1e-6\ntie_embeddings: 'no'\nrope_scaling: {rope_type: linear, factor: 2.0}\n"
    )
    config = ModelConfig.load(path, block_size=256)
    assert (config.name, config.n_layer, config.block_size, config.head_dim) == ("mine", 3, 256, 16)
    assert (config.norm_eps, config.tie_embeddings) == (1e-6, False)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


def test_the_shape_of_a_checkpoint(tmp_path):
    config = ModelConfig.load("tiny_3M", vocab_size=8064)
    shape = {name: value for name, value in config.to_dict().items() if name != "name"}
    (tmp_path / "state.json").write_text(json.dumps({"model": shape, "options": {"model_name": "tiny_3M"}}))
    assert ModelConfig.load(tmp_path) == config
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="names no model"):
        ModelConfig.load(tmp_path)


def test_vocabulary_of_the_store():
    open_ended = ModelConfig.load("tiny_100K")
    assert open_ended.with_vocab_of(8000).vocab_size == 8000
    assert open_ended.with_vocab_of(8001).vocab_size == 8064
    fixed = dataclasses.replace(open_ended, vocab_size=8064)
    assert fixed.with_vocab_of(8010) == fixed
    with pytest.raises(InputError, match=r"8065 ids.*8064 rows"):
        fixed.with_vocab_of(8065)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_query_groups": 3}, "n_query_groups 3 does not divide n_head 4"),
        ({"n_embd": 66}, "n_head 4 does not divide n_embd 66"),
        ({"n_embd": 12}, "3 wide"),
        (
            {"n_layer": 0, "block_size": -1},
            r"n_layer: must be at least 1 .*, not 0; block_size: must be at least 1 .*, not -1",
        ),
        ({"n_layer": "two"}, "n_layer: 'two' is not a whole number"),
        ({"norm_eps": "small"}, "norm_eps: 'small' is not a number"),
        ({"n_layers": 2}, "n_layers: no such option; did you mean n_layer?"),
        ({"n_layer": None}, "n_layer: null is not a whole number"),
        ({"n_layer": 10**9}, "n_layer: must be at least 1 and at most 100,000"),
        ({"n_embd": 10**300}, "n_embd: does not fit 64 bits"),
        ({"norm_eps": math.nan}, "norm_eps: nan is not a finite number"),
        ({"rope_base": math.inf}, "rope_base: inf is not a finite number"),
        ({"rope_scaling": {"factor": math.nan}}, "rope_scaling: nan is not a finite number"),
        ({"rope_scaling": 3}, "rope_scaling: 3 is not of the form"),
        ({"tie_embeddings": "nope"}, "tie_embeddings: 'nope' is neither true nor false"),
        ({"tie_embeddings": 1}, "tie_embeddings: 1 is neither true nor false"),
        ({"head_size": -2}, "head_size: must be at least 1"),
        ({"vocab_size": True}, "vocab_size: true is not a whole number"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.load("tiny_100K", **overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither a file nor a checkpoint folder nor one of LLaMmlein_120M"),
        ("n_layer: 2\n", "n_query_groups is missing; n_embd is missing"),
        ("- a\n", "is not a table"),
        ("n_layer: [\n", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is not a table"),
    ],
)
def test_files_that_are_no_shapes(content, message, tmp_path):
    path = tmp_path / "shape.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        ModelConfig.load(path)
