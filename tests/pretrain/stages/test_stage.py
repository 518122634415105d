"""Opened stages: rates against torch's schedulers, which rows they are dealt, what they refuse to open."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from data_prep.tokenizing.train import train_byte_level
from lit_gpt.cli import InputError
from lit_gpt.rows.store_entry import DocumentShare
from pretrain.options import TrainOptions
from pretrain.stages.options import resolve_stages
from pretrain.stages.stage import open_stages
from pretrain.stages.starts import Starts, StoreRows
from tests.german import german_texts


def opened(train, *stages, **run):
    options = TrainOptions([str(train)], out_dir="out", model_name="tiny_100K", block_size=64)
    plans = [{"name": f"stage-{number}", **stage} for number, stage in enumerate(stages)]
    settings = {"global_batch_size": 4, "stages": plans} | run
    return open_stages(resolve_stages(dataclasses.replace(options, **settings)))


def torch_rates(peak, warmup, steps, make_warmup, make_decay):
    """Of the steps 1 to `steps`; SequentialLR counts the rate before the first step as its 0th."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    schedule = SequentialLR(optimizer, [make_warmup(optimizer), make_decay(optimizer)], [warmup])
    rates = []
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_rates_are_those_of_torch_and_each_warm_up_begins_at_the_last_rate(train_store_dir):
    first = {"steps": 50, "learning_rate": 3e-3, "min_lr": 3e-4, "warmup_steps": 10}
    second = {"steps": 40, "learning_rate": 1e-3, "min_lr": 1e-5, "warmup_steps": 8}
    third = {"steps": 30, "learning_rate": 5e-4, "min_lr": 0.0, "warmup_steps": 6, "lr_schedule": "linear"}
    stages = opened(train_store_dir, first, second, third)
    expected = torch_rates(
        3e-3,
        10,
        50,
        lambda optimizer: LambdaLR(optimizer, lambda step: step / 10),
        lambda optimizer: CosineAnnealingLR(optimizer, 40, eta_min=3e-4),
    )
    expected += torch_rates(
        1e-3,
        8,
        40,
        lambda optimizer: LinearLR(optimizer, 3e-4 / 1e-3, total_iters=8),
        lambda optimizer: CosineAnnealingLR(optimizer, 32, eta_min=1e-5),
    )
    expected += torch_rates(
        5e-4,
        6,
        30,
        lambda optimizer: LinearLR(optimizer, 1e-5 / 5e-4, total_iters=6),
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / 24),
    )
    rates = [
        stage.schedule.learning_rate(step)
        for stage in stages
        for step in range(stage.steps_before + 1, stage.schedule.last_step + 1)
    ]
    assert len(rates) == len(expected) == 120
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12)


def test_a_constant_and_a_wsd_stage_hand_on_the_rate_they_end_with(train_store_dir):
    stages = opened(
        train_store_dir,
        {"steps": 20, "lr_schedule": "constant", "learning_rate": 1e-3, "warmup_steps": 0},
        {"steps": 20, "lr_schedule": "wsd", "learning_rate": 2e-3, "min_lr": 1e-4, "warmup_steps": 10},
        {"steps": 20, "learning_rate": 5e-5, "warmup_steps": 5},  # down, not up
    )
    assert [stage.schedule.initial for stage in stages] == [0.0, 1e-3, 1e-4]
    assert stages[1].schedule.learning_rate(21) == pytest.approx(1.1e-3, abs=1e-12)
    assert stages[2].schedule.learning_rate(41) == pytest.approx(9e-5, abs=1e-12)


def test_no_row_comes_twice_before_its_stores_epoch_ends(train_store_dir, val_store_dir):
    """Four stages over two stores and several epochs; other packings have sequences of their own."""
    stages = opened(
        train_store_dir,
        {"steps": 40, "train_data_dir": [f"{train_store_dir}:1", f"{val_store_dir}:3"]},
        {"steps": 13, "train_data_dir": [str(val_store_dir)], "global_batch_size": 10},
        {"steps": 30, "train_data_dir": [f"{val_store_dir}:1", f"{train_store_dir}:9"], "block_size": 128},
        {"steps": 260, "train_data_dir": [f"{val_store_dir}:1", f"{train_store_dir}:1"]},
    )
    dealt, sizes = defaultdict(list), {}
    sample = 0
    for stage in stages:
        assert stage.numbering.first_sample_of(stage.steps_before + 1) == sample
        n_samples = stage.plan.options.max_steps * stage.options.global_batch_size
        rows = stage.data.rows(np.arange(sample, sample + n_samples))
        for store, epoch, shard, row in zip(*(column.tolist() for column in rows), strict=True):
            packed = stage.data.stores[store]
            sizes[packed.fingerprint] = int(packed.rows_per_shard.sum())
            dealt[packed.fingerprint].append((epoch, shard, row))
        sample += n_samples
    assert len(dealt) == 4
    assert max(epoch for rows in dealt.values() for epoch, _, _ in rows) >= 2
    for packing, rows in dealt.items():
        assert [epoch for epoch, _, _ in rows] == [number // sizes[packing] for number in range(len(rows))]
        assert len(set(rows)) == len(rows)


def test_numbers_follow_the_first_appearance(train_store_dir, val_store_dir):
    stages = opened(
        train_store_dir,
        {"steps": 2},
        {"steps": 2, "train_data_dir": [f"{val_store_dir}:1", f"{train_store_dir}:1"]},
    )
    assert stages[1].data.order.start == (8, (1, 0), (0, 8))
    described = stages[1].data.describe()
    assert described["first_sample"] == 8
    assert [store.get("number") for store in described["stores"]] == [1, 0]
    assert "first_sample" not in stages[0].data.describe()


def test_one_stage_reads_what_a_plain_run_reads(train_store_dir):
    (alone,) = opened(train_store_dir, {"steps": 9})
    (plain,) = opened(train_store_dir, stages=None, max_steps=9)
    assert alone.data.describe() == plain.data.describe()
    assert alone.schedule == plain.schedule


def test_what_cannot_be_opened_is_refused_and_the_stage_named(tmp_path, train_store_dir, val_store_dir):
    train, val = str(train_store_dir), str(val_store_dir)

    def refused(second, message):
        with pytest.raises(InputError, match=message) as caught:
            opened(train_store_dir, {"steps": 2}, {"steps": 2} | second)
        assert "\n" not in str(caught.value)

    refused({"train_data_dir": [f"{train}:1", f"{val}:1", f"{train}:2"]}, "stage stage-1: .* is named twice")
    refused({"train_data_dir": [str(tmp_path / "none")]}, "stage stage-1: .*none")
    refused({"train_data_dir": [f"{train}@0-0.0000001"]}, "stage stage-1: .* has no rows")
    refused({"trainable": ["lm_haed"]}, "stage stage-1: .*lm_haed.*did you mean lm_head")
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 2}}
    with pytest.raises(InputError, match=r"stage stage-1: .*RoPE is scaled by linear there and default here"):
        opened(train_store_dir, {"steps": 2, **scaled}, {"steps": 2})


def test_a_store_of_another_tokenizer_is_refused(tmp_path, train_store_dir, corpus_files):
    from data_prep.tokenizing import job

    train_byte_level(german_texts(100, seed=9), 300, tmp_path / "tokenizer")
    job.tokenize(
        job.Options(
            input=[str(corpus_files[0])],
            tokenizer=tmp_path / "tokenizer",
            output=tmp_path / "other",
            workers=1,
        )
    )
    with pytest.raises(InputError, match=r"stage stage-1: .*other was made with another tokenizer than .*-0"):
        opened(train_store_dir, {"steps": 2}, {"steps": 2, "train_data_dir": [str(tmp_path / "other")]})


def test_long_rows_are_said_to_train_long_range_or_not(train_store_dir):
    short, long, longest = opened(
        train_store_dir, *({"steps": 1, "block_size": block_size} for block_size in (16, 64, 4096))
    )
    assert short.long_range() == []
    assert long.long_range()[0].startswith("long range: ")
    assert "of the targets lie past the first 64 of their document" in longest.long_range()[0]


def test_shares_of_one_stage_that_overlap_are_named():
    shares = [DocumentShare.parse(text) for text in ("0-60", "40-100", "60-100")]
    first, overlapping, rest = (
        StoreRows(f"a@{n}", "a", share, 8, "concat") for n, share in enumerate(shares)
    )
    assert Starts().repeats([first, overlapping]) == ["documents repeat: a@0 and a@1 overlap"]
    assert Starts().repeats([first, rest]) == []
