"""From the options to what they name: training data, validation data, the model's shape."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.cli import InputError
from lit_gpt.hf.trained_model import check_tokenizer
from lit_gpt.model.config import ModelConfig
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from pretrain.data.training_data import TrainingData
from pretrain.data.validation import named_stores
from pretrain.options import TrainOptions
from pretrain.shape import initial_shape, resolve_shape
from pretrain.trainable import frozen_rows


class Inputs(NamedTuple):
    """What a run works on."""

    data: TrainingData
    validation: dict[str, PackedStore]
    config: ModelConfig


def open_inputs(options: TrainOptions, before: ModelConfig | None = None) -> Inputs:
    """Open all and pack what is not packed yet: before processes are connected, so that no collective waits.

    Args:
        before: Shape of the weights to start from, where they are not those of an initial checkpoint.

    Raises:
        InputError: a store or a shape cannot be used, or they do not fit one another.
    """
    shape = resolve_shape(options, before or initial_shape(options))
    data = TrainingData.open(dataclasses.replace(options, block_size=shape.block_size))
    initial, resumes = (
        options.initial_checkpoint_dir,
        options.resume and list_checkpoints(Path(options.out_dir)),
    )
    if initial is not None and not resumes:
        check_tokenizer(Path(initial), data.stores[0].store)
    config = shape.with_vocab_of(data.vocab_size)
    frozen_rows(options.trainable, config)  # what is wrong with it shows before processes are connected
    return Inputs(data, _open_validation(options, data), config)


def _open_validation(options: TrainOptions, data: TrainingData) -> dict[str, PackedStore]:
    """By name; their order is that of the option."""
    packing_dir = Path(options.packing_dir) if options.packing_dir else None
    stores = {}
    for name, path in named_stores(options.val_data_dir or []).items():
        store = TokenStore.open(path)
        if store.manifest.tokenizer != data.stores[0].store.manifest.tokenizer:
            raise InputError(
                f"--val_data_dir {path} was made with another tokenizer than the training "
                "data; tokenize both with the same one"
            )
        stores[name] = PackedStore.open(store, data.options.block_size, options.packing, packing_dir)
    return stores
