"""Training from weights that exist: their tokenizer must be that of the data."""

import json
import re
import shutil

import pytest
import torch

from lit_gpt.cli import InputError
from lit_gpt.hf import trained_model
from lit_gpt.hf.importer import write_initial_checkpoint
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from pretrain.data.inputs import open_inputs
from pretrain.options import TrainOptions
from tests.pretrain.feeding import open_data


class Zeros:
    """A model that is never used."""

    config = ModelConfig.load("tiny_100K", vocab_size=576)

    def dtype(self, name):
        return torch.float32

    def read(self, name):
        return torch.zeros(parameter_shapes(self.config)[name])


def start(tmp_path, store, tokenizer_files, **options):
    folder = tmp_path / "initial"
    if not folder.exists():
        write_initial_checkpoint(Zeros(), folder, "zeros", tokenizer_files)
    return open_inputs(
        TrainOptions(
            model_name=str(folder),
            train_data_dir=[str(store)],
            out_dir=str(tmp_path / "run"),
            initial_checkpoint_dir=str(folder),
            **options,
        )
    )


def test_weights_of_another_tokenizer_are_refused(tmp_path, train_store_dir):
    """Two ids exchanged: every size is right, and every text is another one."""
    foreign = shutil.copytree(train_store_dir / "tokenizer", tmp_path / "foreign")
    definition = json.loads((foreign / "tokenizer.json").read_text())
    vocab = definition["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (foreign / "tokenizer.json").write_text(json.dumps(definition))
    names = (
        f"{re.escape(str(tmp_path / 'initial/tokenizer'))}.*{re.escape(str(train_store_dir / 'tokenizer'))}"
    )
    with pytest.raises(InputError, match=names):
        start(tmp_path, train_store_dir, foreign.iterdir())
    (tmp_path / "run/iter-00000001-ckpt.pth").mkdir(parents=True)
    start(tmp_path, train_store_dir, [], resume="auto")  # a run that exists does not read them any more


def test_what_changes_no_id_is_no_difference(tmp_path, train_store_dir):
    same = shutil.copytree(train_store_dir / "tokenizer", tmp_path / "same")
    definition = json.loads((same / "tokenizer.json").read_text())
    assert definition["post_processor"] is not None
    (same / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": None}))
    start(tmp_path, train_store_dir, same.iterdir())


def test_weights_without_a_tokenizer_are_taken(tmp_path, train_store_dir):
    start(tmp_path, train_store_dir, [])


def test_the_stores_of_a_checkpoint_are_found_by_its_description(train_store_dir, val_store_dir):
    for entries in (("@0-30", ""), ("@0-30:3", ":1"), ("", "")):
        description = open_data(*map("{}{}".format, (train_store_dir, val_store_dir), entries)).describe()
        assert trained_model._stores({"data": {"data": description}}) == [train_store_dir, val_store_dir]
