"""One two-node SLURM for all tests of this folder."""

import pytest

from tests.cluster.local_slurm import LocalSlurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The cluster, running; skips where it cannot be had."""
    cluster = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except RuntimeError as error:
        pytest.skip(f"no SLURM here: {error}")
    yield cluster
    cluster.stop()
