"""The benchmarks of near duplicates run, and their brute force finds all pairs."""

import itertools
import json
import random

from scripts import bench_minhash, bench_minhash_scale
from scripts.bench_minhash import BANDS, similar_pairs
from tests.german import german_texts


def test_pairs_by_rare_elements_are_all_pairs():
    rng = random.Random(0)
    sets = [{(str(n),) for n in rng.choices(range(12), k=rng.randrange(9))} for _ in range(120)]
    found = list(zip(*(each.tolist() for each in similar_pairs(sets)), strict=True))
    expected = []
    for one, other in itertools.combinations(range(len(sets)), 2):
        if union := len(sets[one] | sets[other]):
            expected.append((one, other, len(sets[one] & sets[other]) / union))
    assert found == [each for each in expected if each[2] >= BANDS[0]]


def test_minhash_and_datatrove_side_by_side(tmp_path, capsys):
    lines = [json.dumps({"id": text[:9], "text": text}) for text in german_texts(80, seed=6)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    options = bench_minhash.Options(tmp_path / "out", [str(tmp_path / "in.jsonl")], copies=40, turns=1)
    bench_minhash.main(options)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == len(BANDS) + 3
    assert sum(int(row[1]) for row in rows[3:]) > 30  # pairs
    assert rows[-1][3:5] == [" 100.0% ", " 100.0% "]  # equal texts are found by both
    assert [row[5].strip() for row in rows[2:5]] == ["0", "0", "0"]  # dropped, though unlike all that stay


def test_generated_copies_are_dropped_and_nothing_else(tmp_path, capsys):
    bench_minhash_scale.main(bench_minhash_scale.Options(tmp_path / "out", documents=3000, parts=3))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "and 0 documents that are no copies"
    assert float(lines[-2].split()[-1].rstrip("%")) > 98
