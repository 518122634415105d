"""A run of three stages, logged once for all tests of this folder."""

import pytest

from tests.pretrain.datapoints.staged import LAST, log_stages, open_stages


@pytest.fixture(scope="package")
def stages(train_store_dir, val_store_dir):
    return open_stages(train_store_dir, val_store_dir)


@pytest.fixture(scope="package")
def logged(tmp_path_factory, stages):
    """Read-only: parts that begin at the steps 1, 26, 61, 66, 71 and 101."""
    folder = tmp_path_factory.mktemp("run")
    log_stages(folder, stages, 0, LAST, commits={25, 65, 100})
    return folder
