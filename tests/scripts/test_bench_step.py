"""The benchmark of the step: what it refuses, and its table."""

import pytest

from lit_gpt.cli import InputError
from scripts.bench.measurement import Measurement
from scripts.bench_step import BenchOptions, _parse_shape, _print_table, main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BenchOptions(variants=["ours", "our-fa2"]), "--variants our-fa2: unknown; known: ours, "),
        (BenchOptions(shapes=["tiny_3M"]), "--shapes tiny_3M: write MODEL:ROWS"),
        (BenchOptions(shapes=["tiny_3:4"]), "tiny_3M"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(options, message):
    with pytest.raises(InputError, match=message):
        main(options)


def test_the_table_compares_medians_with_the_last_variant(train_store_dir, capsys):
    train = _parse_shape("tiny_100K:4", BenchOptions())
    train.train_data_dir = [str(train_store_dir)]
    runs = {"ours": [[1.0, 2.0], [1.0, 1.0]], "bare": [[4.0], [4.0]]}
    measured = {
        name: [Measurement(seconds, slots=512, peak_bytes=10**9, device="CPU") for seconds in each]
        for name, each in runs.items()
    }
    lines = _print_table(train, measured)
    assert [(line["variant"], line["ratio"]) for line in lines] == [("ours", 4.0), ("bare", 1.0)]
    assert lines[0]["tokens_per_second"] == 4 * 128
    assert "ratio against bare, rows of 128" in capsys.readouterr().out
