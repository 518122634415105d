"""Rotary positions against transformers, with every scaling, also beyond the original length."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lit_gpt.cli import InputError
from lit_gpt.hf.mapping import to_hf_config
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.rope import inverse_frequencies, rotary_tables, rotate
from tests.lit_gpt.model.rope_scalings import scalings

ORIGINAL = 64
SCALINGS = {
    **scalings(ORIGINAL),
    "yarn, everything given": {
        "rope_type": "yarn",
        "factor": 6.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
    },
    "yarn with its factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": ORIGINAL,
        "attention_factor": 1.25,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_equals_transformers(scaling, base):
    config = ModelConfig.load(
        "tiny_100K", vocab_size=8, rope_scaling=scaling, rope_base=base, block_size=4 * ORIGINAL, head_size=32
    )
    theirs = LlamaRotaryEmbedding(LlamaConfig(**to_hf_config(config)))
    frequencies, factor = inverse_frequencies(config)
    assert torch.equal(frequencies, theirs.inv_freq)
    assert factor == theirs.attention_scaling

    positions = torch.arange(0, 16 * ORIGINAL, 7)
    x = torch.randn(len(positions), config.n_head, config.head_dim)
    ours = rotate(x, *rotary_tables(frequencies, factor, positions))
    cos, sin = theirs(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    torch.testing.assert_close(ours, expected[0].transpose(0, 1), rtol=0, atol=1e-5)


def test_it_is_bitwise_the_rotation_written_with_roll():
    """Chunk and cat only compile to wider loads."""
    frequencies, factor = inverse_frequencies(ModelConfig.load("tiny_100K", vocab_size=8))
    cos, sin = rotary_tables(frequencies, factor, torch.arange(50))
    x = torch.randn(50, 3, 2 * len(frequencies)).bfloat16()
    swapped = x.roll(len(frequencies), dims=-1)
    assert torch.equal(rotate(x, cos, sin), torch.addcmul(x * cos, swapped, sin).to(x.dtype))


def test_scores_depend_on_distance_only():
    frequencies, factor = inverse_frequencies(ModelConfig.load("tiny_100K", vocab_size=8))
    q, k = torch.randn(2, 1, 1, 2 * len(frequencies))

    def score(q_position, k_position):
        at = [rotary_tables(frequencies, factor, torch.tensor([p])) for p in (q_position, k_position)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is unknown; known: default, linear"),
        ({"rope_type": "llama3", "factor": 2.0}, "llama3 needs low_freq_factor"),
        ({"rope_type": "linear"}, "linear needs factor"),
        ({"rope_type": "linear", "factor": "two"}, "linear cannot be computed with factor: two"),
    ],
)
def test_unknown_or_incomplete_scalings_are_named(scaling, message):
    with pytest.raises(InputError, match=message):
        inverse_frequencies(ModelConfig.load("tiny_100K", vocab_size=8, rope_scaling=scaling))
