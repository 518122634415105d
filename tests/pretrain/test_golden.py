"""Twenty losses, written down once: a change of the model, the data engine or the optimizer shows here.

Where a change of numbers is meant, say so in the commit and put the new values (printed on failure) below. For a
refactor, scripts/compare_revisions.py compares bit for bit.
"""

import pytest

from tests.pretrain.running import losses, train

GOLDEN: list[float] = []


def test_the_first_twenty_losses_are_what_they_were(tmp_path, train_store_dir):
    result = train(tmp_path, train_store_dir, max_steps=20, seed=42)
    assert result.returncode == 0, result.stderr
    values = losses(tmp_path)
    assert values == pytest.approx(GOLDEN, abs=1e-5), [round(value, 7) for value in values]
