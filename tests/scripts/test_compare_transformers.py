"""The trainer against an independent one: transformers' Llama in a plain loop."""

import pytest

from scripts.compare_transformers import CompareOptions, compare


@pytest.mark.slow
def test_training_follows_transformers(train_store_dir):
    options = CompareOptions([str(train_store_dir)], model_name="tiny_100K", steps=200, learning_rate=3e-3)
    differences = compare(options)
    assert len(differences.loss) == 200
    assert max(differences.loss[:50]) < 1e-4
    assert max(differences.loss) < 1e-2
    assert list(differences.probed) == [0, 50, 100, 200]
    for loss, gradient in differences.probed.values():
        assert loss < 1e-5
        assert gradient < 1e-4
