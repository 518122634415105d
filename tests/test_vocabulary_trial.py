"""The trial of docs/vocabulary.md in ten steps, with the commands that users give."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from data_prep.passages import PASSAGES, documents, load_registers
from tests.german import german_texts

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_both_models_are_measured_on_both_languages(tmp_path):
    texts = [
        (text for _, text in islice(documents(0, load_registers(PASSAGES)), 1500)),
        german_texts(1500, seed=1),
    ]
    corpora = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for corpus, lines in zip(corpora, texts, strict=True):
        rows = [json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(lines)]
        corpus.write_text("".join(rows))
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "scripts/vocabulary_trial.sh"), *map(str, corpora), str(out)]
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "10", "TOKENS": "320"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = (out / "table.md").read_text().splitlines()[2:]
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows] == list(range(9))
    assert all(0 < row[i] < 10 for row in rows for i in (2, 3, 5, 6))
    assert rows[-1][4] > rows[-1][1]  # a step of the extended model reads more text
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there already") == 6
