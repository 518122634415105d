"""What several tests of data preparation use."""

import os

import pytest

from data_prep.reading import batches
from tests.data_prep.interrupting import quicken


@pytest.fixture
def many_small_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", batches.BATCH_BYTES)  # restored afterwards
    monkeypatch.setattr(os, "fsync", os.fsync)
    quicken()
