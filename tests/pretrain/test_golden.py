"""Twenty losses, written down once: a change of the model, the data engine or the optimizer shows here.

Where a change of numbers is meant, say so in the commit and put the new values (printed on failure) below.
For a refactor, scripts/compare_revisions.py compares bit for bit.
"""

import pytest

from tests.pretrain.running import losses, train

GOLDEN = [
    6.451690,
    6.298970,
    6.255035,
    6.127355,
    5.946878,
    5.726825,
    5.631523,
    5.504715,
    5.315822,
    5.265198,
    5.203742,
    5.154362,
    5.039587,
    4.986089,
    5.051581,
    4.925570,
    4.939454,
    4.933054,
    4.898753,
    4.876014,
]


def test_the_first_twenty_losses_are_what_they_were(tmp_path, train_store_dir):
    result = train(tmp_path, train_store_dir, max_steps=20, seed=42)
    assert result.returncode == 0, result.stderr
    values = losses(tmp_path)
    assert values == pytest.approx(GOLDEN, abs=1e-5), ", ".join(f"{value:.6f}" for value in values)
