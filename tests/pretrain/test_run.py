"""Runs in this process: what they draw and load, and when they collect garbage."""

import dataclasses
import gc
import json

import pytest
import torch

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from pretrain import trainer
from pretrain.checkpoint.snapshot import model_tensors
from pretrain.trainer import Trainer
from tests.pretrain.running import open_run
from tests.scripts.our_model import reader_of


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_found_before_weights_are_drawn(tmp_path, train_store_dir, monkeypatch, tied):
    config = dataclasses.replace(ModelConfig.load("tiny_100K"), tie_embeddings=tied)
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(config.to_dict()))
    flags = {"model_name": str(shape), "max_steps": 6}
    first = open_run(tmp_path / "run", train_store_dir, **flags)
    first.fit()
    (checkpoint,) = (folder for _, folder in list_checkpoints(tmp_path / "run"))

    monkeypatch.setattr(GPT, "init_weights", lambda *_: pytest.fail("weights are drawn"))
    resumed = open_run(tmp_path / "run", train_store_dir, resume="auto", **flags | {"max_steps": 8})
    initial = {"initial_checkpoint_dir": str(checkpoint)}
    started = open_run(tmp_path / "other", train_store_dir, **flags | initial)
    saved = reader_of(checkpoint)
    for run in (resumed, started):
        tensors = model_tensors(run.model)
        assert set(tensors) == set(saved.keys())
        assert all(torch.equal(tensor, saved.read(name)) for name, tensor in tensors.items())
        run.fit()
        assert run.step == run.schedule.max_steps


def test_no_garbage_is_collected_within_a_step(tmp_path, train_store_dir, monkeypatch):
    monkeypatch.setattr(trainer, "GARBAGE_INTERVAL", 2)
    before, within, collections = gc.get_threshold(), [False], []

    class Watched(Trainer):
        def train_step(self, *arguments):
            within[0] = True
            done = super().train_step(*arguments)
            within[0] = False
            return done

    run = open_run(tmp_path, train_store_dir, Watched, max_steps=6)
    gc.set_threshold(10)
    gc.callbacks.append(lambda phase, info: collections.append(within[0]))
    try:
        run.fit()
    finally:
        gc.callbacks.pop()
        gc.set_threshold(*before)
    assert len(collections) >= 6
    assert not any(collections)
    assert gc.isenabled()
