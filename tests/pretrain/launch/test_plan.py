"""Memory against what autograd keeps and arithmetic done by hand; checkpoints against retention."""

import dataclasses
import itertools

import pytest
import torch

from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain.checkpoint import writer
from pretrain.launch.examine import examine
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


@pytest.mark.parametrize("lengths", [(31,), (13, 2, 16)])
def test_there_are_never_more_checkpoints_than_planned(tmp_path, monkeypatch, train_store_dir, lengths):
    """Saved as the trainer does, and deleted where its retention finds them expired."""
    monkeypatch.setattr(writer, "_looks_complete", lambda folder: True)
    borders = set(itertools.accumulate(lengths[:-1]))
    stages = [{"name": str(number), "steps": steps} for number, steps in enumerate(lengths)]
    length = {"stages": stages} if borders else {"max_steps": 31}
    for number, chosen in enumerate(itertools.product([0, 3, 5, 100], [0, 1, 3], [0, 10, 12])):
        interval, keep_last, keep_every = chosen
        out_dir = tmp_path / str(number)
        options = TrainOptions(
            [str(train_store_dir)], model_name="tiny_100K", out_dir=str(out_dir), **length,
            save_step_interval=interval, keep_last=keep_last, keep_every=keep_every,
        )  # fmt: skip
        planned, most = examine(options).checkpoints_kept, 0
        for step in range(1, 32):
            if step in {*borders, 31} or (interval and step % interval == 0):
                (out_dir / f"iter-{step:08d}-ckpt.pth").mkdir(parents=True)
                most = max(most, len(list(out_dir.iterdir())))
                for folder in writer.expired(out_dir, keep_last, keep_every, borders):
                    folder.rmdir()
        assert most <= planned <= most + len(lengths) + (31 // keep_every if keep_every else 0)
