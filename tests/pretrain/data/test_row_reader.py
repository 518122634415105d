"""Tables of rows from several shards."""

import numpy as np

from pretrain.data.row_reader import by_shard
from tests.pretrain.feeding import open_data


def test_a_part_of_a_table_is_the_table_of_a_part(train_store_dir, val_store_dir):
    data = open_data(f"{train_store_dir}:3", f"{val_store_dir}:1")
    whole = data.table(data.rows(np.arange(100))).part(30, 60)
    part = data.table(data.rows(np.arange(30, 60)))
    for one, other in zip(whole.addresses, part.addresses, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(whole.checksums, part.checksums)
    for name in ("offsets", "document", "start", "length"):
        assert np.array_equal(getattr(whole.rows, name), getattr(part.rows, name))


def test_by_shard():
    groups = by_shard(np.array([1, 0, 1, 0]), np.array([0, 7, 0, 2]))
    assert [(store, shard, where.tolist()) for store, shard, where in groups] == [
        (0, 2, [3]),
        (0, 7, [1]),
        (1, 0, [0, 2]),
    ]
    assert by_shard(np.array([], dtype=int), np.array([], dtype=int)) == []
