"""A checkpoint of random weights, as any number of ranks writes it, without training."""

from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import folder as checkpoint_module
from lit_gpt.checkpoint.folder import Manifest
from lit_gpt.checkpoint.tensor_files import TensorSpec, write_tensors
from lit_gpt.files import rename
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes

CONFIG = ModelConfig.load("tiny_100K", vocab_size=576)
STATE = {
    "step": 100,
    "tokens": 51200,
    "options": {"model_name": "tiny_100K", "learning_rate": 0.001, "train_data_dir": ["/data/store"]},
    "data": {
        "data": {
            "options": {"train_data_dir": ["/secret/place/german"]},
            "stores": [{"store": "a1b2c3", "packing": "d4", "rows": 1234}],
        }
    },
}


def parameter(name: str, config: ModelConfig = CONFIG) -> torch.Tensor:
    """The weights that the checkpoint holds."""
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(parameter_shapes(config)[name], generator=generator)


def write_checkpoint(
    folder: Path,
    ranks: int = 1,
    config: ModelConfig = CONFIG,
    skip: str | None = None,
    step: int = 100,
    state: dict[str, Any] = STATE,
) -> Path:
    """Rows in equal ranges, the last ones possibly empty; without the parameter `skip`."""
    temporary = checkpoint_module.create(folder)
    shape = {name: value for name, value in config.to_dict().items() if name != "name"}
    state = state | {"step": step, "model": shape}
    files = {checkpoint_module.STATE: checkpoint_module.write_state(temporary, state)}
    for rank in range(ranks):
        specs = []
        for name, (rows, *rest) in parameter_shapes(config).items():
            size = -(-rows // ranks)
            start, stop = min(rank * size, rows), min((rank + 1) * size, rows)
            if stop > start and name != skip:
                specs.append(
                    TensorSpec(name, torch.float32, (stop - start, *rest), start if ranks > 1 else None)
                )

        def body(spec: TensorSpec) -> torch.Tensor:
            start = spec.first_row or 0
            return parameter(spec.name, config)[start : start + spec.shape[0]]

        file = f"model/rank-{rank:05d}-000.safetensors"
        files[file] = write_tensors(temporary / file, specs, body)
    checkpoint_module.seal(temporary, Manifest(step, ranks, "sharded", files))
    rename(temporary, folder)
    return folder
