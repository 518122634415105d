"""The loader: the same global batches whoever shares them and wherever it starts, and nothing fed unseen."""

import itertools
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.model.loss import IGNORE_INDEX
from pretrain.data.dataloader import check_resumable
from tests.pretrain.feeding import BLOCK, GLOBAL_BATCH, feed, flip, open_data


@pytest.fixture(scope="module")
def data(train_store_dir, val_store_dir):
    return open_data(f"{train_store_dir}:3", f"{val_store_dir}:1")


def rows_of(batch):
    """inputs, labels and positions of a step, (3, rows, BLOCK)."""
    micro = batch.micro_batches
    return torch.stack([torch.cat([m[field] for m in micro]) for field in range(3)])


def steps(loader, count):
    return [next(loader) for _ in range(count)]


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(1, 24),
    world=st.integers(1, 24),
    micro=st.integers(1, 9),
    first=st.one_of(st.integers(1, 50), st.integers(1, 10**9)),
)
def test_ranks_of_every_world_size_share_the_same_global_batch(data, size, world, micro, first):
    if size % world:
        with pytest.raises(InputError, match="nearest"):
            feed(data, global_batch_size=size, world_size=world)
        return
    alone = next(feed(data, global_batch_size=size, micro_batch_size=24, first_step=first))
    ranks = [
        next(
            feed(
                data,
                global_batch_size=size,
                micro_batch_size=micro,
                world_size=world,
                rank=rank,
                first_step=first,
            )
        )
        for rank in range(world)
    ]
    assert torch.equal(torch.cat([rows_of(batch) for batch in ranks], dim=1), rows_of(alone))
    assert np.concatenate([batch.rows.sample for batch in ranks]).tolist() == alone.rows.sample.tolist()
    assert {batch.n_targets for batch in ranks} == {alone.n_targets}
    assert sum(batch.attention_pairs for batch in ranks) == alone.attention_pairs
    for batch in ranks:
        sizes = [len(m.input_ids) for m in batch.micro_batches]
        assert sum(sizes) == size // world
        assert all(number == micro for number in sizes[:-1])


@settings(deadline=None, max_examples=20)
@given(first=st.integers(1, 200), seed=st.integers(0, 3))
def test_resumed_at_any_step_it_continues(train_store_dir, first, seed):
    data = open_data(train_store_dir, seed=seed)
    straight = steps(feed(data, first_step=max(1, first - 3)), 3 + min(first, 4))[-3:]
    loader = feed(data, first_step=straight[0].step, prefetch=2)
    resumed = steps(loader, 3)
    loader.close()
    for one, other in zip(straight, resumed, strict=True):
        assert one.step == other.step
        assert torch.equal(rows_of(one), rows_of(other))


def test_each_step_counts_what_it_holds(data):
    batch = next(feed(data))
    labels = torch.cat([micro.labels for micro in batch.micro_batches])
    assert batch.n_targets == int((labels != IGNORE_INDEX).sum())
    pairs = 0
    for micro in batch.micro_batches:
        bounds = micro.documents.cu_seqlens.tolist()
        flat = micro.labels.flatten()
        for start, end in itertools.pairwise(bounds):
            pairs += (end - start) ** 2 if int(flat[start]) != IGNORE_INDEX else 0
    assert batch.attention_pairs == pairs


def test_an_epoch_feeds_each_target_of_the_store_once(train_store_dir):
    data = open_data(train_store_dir)
    store = data.stores[0].store
    n_rows = data.order.rows_per_epoch(0)
    seen = [[np.zeros(n - 1, int) for n in store.lengths(shard)] for shard in range(store.n_shards)]
    fed = 0
    for batch in steps(feed(data, global_batch_size=n_rows // 7), 7):
        table = batch.rows.table
        rows, shard = table.rows, table.addresses.shard[table.rows.row_of_segment]
        for number, document, start, length in zip(
            shard, rows.document, rows.start, rows.length, strict=True
        ):
            seen[number][document][start : start + length] += 1
        labels = rows_of(batch)[1]
        assert int((labels != IGNORE_INDEX).sum()) == rows.length.sum()
        fed += n_rows // 7
    once = sum(int((times == 1).sum()) for shard in seen for times in shard)
    more = sum(int((times > 1).sum()) for shard in seen for times in shard)
    assert more == 0
    assert once >= data.stores[0].n_targets - (n_rows - fed) * BLOCK


def test_fewer_rows_than_ranks(val_store_dir):
    data = open_data(val_store_dir, block_size=8192)
    assert data.order.rows_per_epoch(0) < 8
    batches = [next(feed(data, global_batch_size=8, world_size=8, rank=rank)) for rank in range(8)]
    rows = {
        (int(a.epoch[0]), int(a.shard[0]), int(a.row[0])) for a in (b.rows.table.addresses for b in batches)
    }
    assert len(rows) == 8


def test_the_ranks_must_share_evenly(data):
    with pytest.raises(InputError, match=r"6 is not divisible by 4 processes.* 4 and 8"):
        feed(data, global_batch_size=6, world_size=4)


# ---- faults


@pytest.fixture
def own_store(train_store_dir, tmp_path):
    return shutil.copytree(train_store_dir, tmp_path / "store")


def until_refused(loader):
    for _ in range(10_000):
        next(loader)
    pytest.fail("nothing was refused")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_flipped_byte_is_named_by_shard_and_row_and_fed_to_nobody(own_store, prefetch):
    data = open_data(own_store)
    store, packing = data.stores[0].store, data.stores[0].rows(1)
    segment = int(packing.offsets[7])
    token = store.pointers(1)[packing.document[segment]] + packing.start[segment]
    flip(own_store / "shard-00001.bin", 2 * int(token))
    loader = feed(data, prefetch=prefetch)
    with pytest.raises(InputError, match=r"shard-00001\.bin: row 7 of shard 1 is not what was packed"):
        until_refused(loader)
    if prefetch:
        with pytest.raises(InputError, match="row 7 of shard 1"):
            next(loader)
    loader.close()


def test_a_shard_cut_short_before_the_start(own_store):
    shard = own_store / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"shard-00001\.bin"):
        open_data(own_store)


def test_a_shard_cut_short_while_in_use(own_store):
    loader = feed(open_data(own_store), global_batch_size=4096)
    shard = own_store / "shard-00001.bin"
    next(loader)
    with shard.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"shard-00001\.bin was cut short"):
        until_refused(loader)


def test_a_store_replaced_under_a_running_job(own_store, val_store_dir):
    data = open_data(own_store)
    state = feed(data).state_dict(3)
    for file in own_store.glob("shard-*.bin"):
        content = np.fromfile(file, "<u2")[::-1]
        file.unlink()
        content.tofile(file)
    with pytest.raises(InputError, match="is not what was packed"):
        until_refused(feed(open_data(own_store)))

    shutil.rmtree(own_store)
    shutil.copytree(val_store_dir, own_store)
    with pytest.raises(
        InputError, match=f"store {own_store} has fingerprint .* instead of .*--allow_changed"
    ):
        check_resumable(state, open_data(own_store))
    check_resumable(state, open_data(own_store), allow_changed_data=True)


def test_the_state_is_json_and_says_what_changed(data, train_store_dir, val_store_dir):
    state = json.loads(json.dumps(feed(data).state_dict(11)))
    assert state["samples"] == 11 * GLOBAL_BATCH
    check_resumable(state, data)
    other = open_data(f"{train_store_dir}:3", f"{val_store_dir}:2", seed=9)
    with pytest.raises(
        InputError, match=r"seed was 5 and is 9; weights were \[3.0, 1.0\] and are \[3.0, 2.0\]"
    ):
        check_resumable(state, other)


def test_closing_ends_the_thread(data):
    before = threading.active_count()
    loader = feed(data, prefetch=2)
    next(loader)
    loader.close()
    assert threading.active_count() == before


def test_no_thread_runs_before_the_first_batch_is_asked_for(train_store_dir, tmp_path):
    """What may still refuse to start must not leave a thread behind."""
    before = threading.active_count()
    loader = feed(open_data(train_store_dir, cache_dir=str(tmp_path)), prefetch=2)
    assert threading.active_count() == before
    next(loader)
    assert threading.active_count() == before + 2  # the loader's and its cache's
    loader.close()
    assert threading.active_count() == before
