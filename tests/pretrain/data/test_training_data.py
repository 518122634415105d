"""Stores opened together, and the segments of their rows."""

import json
import shutil

import numpy as np
import pytest

from lit_gpt.cli import InputError
from lit_gpt.rows.sample_order import OrderStart
from pretrain.data.training_data import TrainingData, compare_data
from tests.pretrain.feeding import open_data


@pytest.fixture
def data(train_store_dir, val_store_dir):
    return open_data(f"{train_store_dir}:3", f"{val_store_dir}:1")


def test_rows_and_their_segments_are_those_of_the_packings(data):
    samples = np.random.default_rng(0).integers(0, 10**6, 500)
    addresses = data.rows(samples)
    table = data.table(addresses)
    targets = data.targets_per_row(addresses)
    assert set(addresses.store) == {0, 1}
    for index, (store, _, shard, row) in enumerate(zip(*map(np.ndarray.tolist, addresses), strict=True)):
        packing = data.stores[store].rows(shard)
        expected = slice(packing.offsets[row], packing.offsets[row + 1])
        segments = slice(table.rows.offsets[index], table.rows.offsets[index + 1])
        for name in ("document", "start", "length"):
            assert np.array_equal(getattr(table.rows, name)[segments], getattr(packing, name)[expected])
        assert table.checksums[index] == data.stores[store].checksums(shard)[row]
        assert targets[index] == packing.length[expected].sum()
    assert data.table(data.rows(np.arange(0))).rows.n_rows == 0


def test_weights_are_of_all_stores_or_of_none(train_store_dir, val_store_dir):
    assert open_data(train_store_dir, val_store_dir).weights is None
    assert open_data(f"{train_store_dir}:3", f"{val_store_dir}:0.5").weights == [3, 0.5]
    with pytest.raises(InputError, match="every store a weight or none"):
        open_data(f"{train_store_dir}:3", val_store_dir)
    with pytest.raises(InputError, match="at least one"):
        open_data()


def test_shares_of_a_store_are_described_and_may_move(train_store_dir, val_store_dir, tmp_path):
    entries = [f"{train_store_dir}@0-30.0:3", f"{train_store_dir}@30-100:1", f"{val_store_dir}:2"]
    data = open_data(*entries)
    whole = open_data(train_store_dir)
    assert sum(packed.n_targets for packed in data.stores[:2]) == whole.stores[0].n_targets
    description = json.loads(json.dumps(data.describe()))
    assert [store.get("share") for store in description["stores"]] == ["0-30", "30-100", None]
    moved = shutil.copytree(train_store_dir, tmp_path / "moved@7-8:9")
    for stores in (None, [str(moved), str(moved), str(val_store_dir)]):
        reopened = TrainingData.reopen(description, stores)
        assert reopened.describe()["stores"] == description["stores"]
        assert np.array_equal(reopened.rows(np.arange(500)), data.rows(np.arange(500)))
    with pytest.raises(InputError, match=rf"the share of {moved}@0-40:3.0 was 0-30 and is 0-40"):
        TrainingData.reopen(description, [f"{moved}@0-40", str(moved), str(val_store_dir)])
    with pytest.raises(InputError, match=r"@0-0\.001 has no rows: none of its documents has two tokens"):
        open_data(f"{train_store_dir}@0-0.001")


def test_a_colon_in_a_folders_name_is_not_a_weight(train_store_dir, tmp_path):
    folder = shutil.copytree(train_store_dir, tmp_path / "run:7")
    assert open_data(folder).weights is None
    assert open_data(f"{folder}:2").weights == [2]


def test_a_description_opens_the_same_data(data):
    reopened = TrainingData.reopen(json.loads(json.dumps(data.describe())))
    samples = np.arange(1000)
    for one, other in zip(data.rows(samples), reopened.rows(samples), strict=True):
        assert np.array_equal(one, other)


def test_a_later_stage_is_described_and_opened_again(train_store_dir, val_store_dir):
    plain = open_data(train_store_dir, val_store_dir)
    start = OrderStart(600, (2, 1), (0, 7))
    later = TrainingData.open(plain.options, start)
    description = json.loads(json.dumps(later.describe()))
    assert description["first_sample"] == 600
    assert [set(store) - {"store", "packing", "rows"} for store in description["stores"]] == [
        {"number"},
        {"position"},
    ]
    assert (description["stores"][0]["number"], description["stores"][1]["position"]) == (2, 7)
    reopened = TrainingData.reopen(description)
    assert reopened.order.start == start
    samples = np.arange(600, 900)
    assert np.array_equal(later.rows(samples), reopened.rows(samples))
    assert compare_data(plain.describe(), description) == [
        "the first sample was 0 and is 600",
        f"the number of {train_store_dir} was 0 and is 2",
        f"the position of {val_store_dir} was 0 and is 7",
    ]
    assert set(plain.describe()) == {"options", "weights", "stores"}
    assert {frozenset(store) for store in plain.describe()["stores"]} == {
        frozenset({"store", "packing", "rows"})
    }


def test_stores_may_move_but_not_change(data, train_store_dir, val_store_dir, tmp_path):
    description = data.describe()
    moved = shutil.copytree(train_store_dir, tmp_path / "moved")
    TrainingData.reopen(description, [str(moved), str(val_store_dir)])
    with pytest.raises(InputError, match=rf"no longer what the run read: store {val_store_dir}:3.0 has"):
        TrainingData.reopen(description, [str(val_store_dir), str(train_store_dir)])
    with pytest.raises(InputError, match="there were 2 stores and are 1"):
        TrainingData.reopen(description, [str(moved)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "seed was 5 and is 6"),
        ({"shuffle_window": 3}, "shuffle_window was 2 and is 3"),
        ({"block_size": 32}, "block_size was 64 and is 32"),
        ({"packing": "concat"}, "packing was best_fit and is concat"),
    ],
)
def test_what_changed_is_named(train_store_dir, change, message):
    before, now = open_data(train_store_dir).describe(), open_data(train_store_dir, **change).describe()
    assert compare_data(before, now) == [message]
    assert compare_data(before, before) == []


def test_where_the_cache_lies_changes_nothing(train_store_dir, tmp_path):
    plain, cached = open_data(train_store_dir), open_data(train_store_dir, cache_dir=str(tmp_path))
    assert compare_data(plain.describe(), cached.describe()) == []


def test_stores_of_other_tokenizers_are_not_mixed(train_store_dir, val_store_dir, tmp_path):
    other = shutil.copytree(val_store_dir, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="another tokenizer"):
        open_data(train_store_dir, other)
