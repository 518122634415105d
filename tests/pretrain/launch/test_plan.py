"""The memory estimate against what autograd keeps and against arithmetic done by hand."""

import dataclasses

import pytest
import torch

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain.launch.memory import checkpoint_bytes, estimate_memory
from pretrain.options import TrainOptions

CONFIG = dataclasses.replace(ModelConfig.load("tiny_20M"), block_size=256).with_vocab_of(512)


def test_state_is_split_by_strategy():
    config = ModelConfig.load("LLaMmlein_1B")
    whole = 16 * config.n_parameters

    def state(**options) -> int:
        return estimate_memory(TrainOptions(devices=4, num_nodes=2, **options), config).state

    assert state(sharding_strategy="NO_SHARD") == whole
    assert state(sharding_strategy="FULL_SHARD") == state(sharding_strategy="SHARD_GRAD_OP") == whole // 8
    assert state(sharding_strategy="HYBRID_SHARD") == whole // 4
    assert state(sharding_strategy="HYBRID_SHARD", shard_group_size=2) == whole // 2
    assert state(precision="bf16-true") == whole // 16
    assert checkpoint_bytes(TrainOptions(), config) == 12 * config.n_parameters


def test_recomputing_keeps_less():
    kept = [
        estimate_memory(TrainOptions(activation_checkpointing=which), CONFIG).activations
        for which in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0] / 3


@pytest.mark.slow
def test_activations_are_what_autograd_keeps():
    model = GPT(CONFIG)
    for block in model.transformer.h:
        block.compile()
    n_rows, length = 4, CONFIG.block_size
    ids = torch.randint(0, 512, (n_rows, length))
    positions = torch.arange(length).repeat(n_rows, 1)
    documents = Documents(torch.arange(n_rows + 1, dtype=torch.int32) * length, length)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, positions, documents, ids)
    measured = sum(storage.nbytes() for storage in kept.values())
    options = TrainOptions(micro_batch_size=n_rows)
    assert estimate_memory(options, CONFIG, compute_bytes=4).activations == pytest.approx(measured, rel=0.2)
