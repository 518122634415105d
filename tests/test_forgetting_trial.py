"""The trial of docs/continue.md in eight steps: complete, and again."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from data_prep.passages import PASSAGES, documents, load_registers

ROOT = Path(__file__).resolve().parents[1]


def trial(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "forgetting_trial.sh"), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, "STEPS": "8"},
        capture_output=True,
        text=True,
    )


def test_too_few_arguments_end_with_the_usage():
    result = trial("english.jsonl")
    assert (result.returncode, result.stdout) == (2, "")
    assert "forgetting_trial.sh ENGLISH GERMAN OUT" in result.stderr


@pytest.mark.slow
def test_a_table_and_a_plot_of_three_runs_at_each_border(tmp_path):
    corpora = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for seed, corpus in enumerate(corpora):
        texts = enumerate(text for _, text in islice(documents(seed, load_registers(PASSAGES)), 1500))
        corpus.write_text("".join(json.dumps({"id": str(id_), "text": text}) + "\n" for id_, text in texts))
    out = tmp_path / "out"
    result = trial(*corpora, out)
    assert result.returncode == 0, result.stderr
    lines = (out / "table.md").read_text().splitlines()
    borders = [
        ("0", "adapt"),
        ("5", "adapt"),
        ("5", "longer"),
        ("6", "longer"),
        ("6", "anneal"),
        ("8", "anneal"),
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2 : 2 + len(borders)]]
    assert [(step, stage) for step, stage, *_ in cells] == borders
    bits = [[float(cell) for cell in row[2:]] for row in cells]
    assert len(set(bits[0][:3])) == len(set(bits[0][3:])) == 1  # before the first step they are one model
    assert len(set(bits[-1][:3])) > 1
    assert all(0 < value < 8 for row in bits for value in row)
    assert (out / "forgetting.png").stat().st_size > 10_000
    again = trial(*corpora, out)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there already") == 6
