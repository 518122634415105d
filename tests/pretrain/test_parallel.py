"""Several processes on gloo train what one process trains."""

import pytest

from pretrain.metrics import read_metrics
from tests.pretrain.running import losses, train

# One document a row, most slots masked: ranks have very different numbers of targets.
FLAGS = {
    "packing": "one_per_row",
    "max_steps": 50,
    "global_batch_size": 8,
    "eval_step_interval": 25,
    "eval_iters": 7,
    "grad_clip": 0.5,
    "save_step_interval": 0,
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, train_store_dir, val_store_dir):
    out_dir = tmp_path_factory.mktemp("one_process")
    result = train(out_dir, train_store_dir, val_data_dir=val_store_dir, **FLAGS)
    assert result.returncode == 0, result.stderr
    return out_dir


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize(
    ("strategy", "flags"),
    [
        ("FULL_SHARD", {}),
        ("SHARD_GRAD_OP", {"activation_checkpointing": "selective"}),
        ("HYBRID_SHARD", {"shard_group_size": 2}),
        ("NO_SHARD", {"activation_checkpointing": "full"}),
    ],
)
def test_losses_equal_those_of_one_process(
    one_process, tmp_path, train_store_dir, val_store_dir, devices, strategy, flags
):
    settings = FLAGS | {"devices": devices, "sharding_strategy": strategy} | flags
    result = train(tmp_path, train_store_dir, val_data_dir=val_store_dir, **settings)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path) == pytest.approx(losses(one_process), abs=1e-5)
    for name in ("val_loss", "grad_norm"):
        ours, theirs = (
            [row[name] for row in read_metrics(d / "metrics.csv")] for d in (tmp_path, one_process)
        )
        assert [value is None for value in ours] == [value is None for value in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-4)
