"""Counted operations against torch's own counter, and device names."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import device_peak_flops, flops_inside_documents, flops_per_token, matmul_parameters
from lit_gpt.model.gpt import GPT


def test_matrix_products_as_torch_counts_them():
    """2 per weight and token forward, twice that backward; attention is no operator that it counts."""
    config = ModelConfig.load("tiny_100K", vocab_size=96)
    model = GPT(config)
    model.init_weights(0)
    ids, positions = torch.zeros(2, 16, dtype=torch.int64), torch.arange(16).expand(2, 16)
    documents = Documents(torch.tensor([0, 16, 32], dtype=torch.int32), 16)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids, positions, documents).flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() == 6 * matmul_parameters(config) * ids.numel()


def test_known_values():
    config = ModelConfig.load("LLaMmlein_1B")
    assert matmul_parameters(config) == config.n_parameters - 32064 * 2048 - (2 * 22 + 1) * 2048
    assert flops_per_token(config, 2048) == 6 * matmul_parameters(config) + 12 * 22 * 2048 * 2048


def test_whole_rows_are_the_case_where_both_formulas_agree():
    config = ModelConfig.load("LLaMmlein_120M")
    whole = flops_inside_documents(config, tokens=4 * 2048, attention_pairs=4 * 2048**2)
    assert whole == 4 * 2048 * flops_per_token(config, 2048)
    assert flops_inside_documents(config, tokens=4 * 2048, attention_pairs=8 * 1024**2) < whole


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Some GPU of next year", None),
    ],
)
def test_device_peaks(name, peak):
    assert device_peak_flops(name) == peak
