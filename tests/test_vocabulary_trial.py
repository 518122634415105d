"""The trial of docs/vocabulary.md in ten steps, with the commands that users give."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_prep.passages import PASSAGES, documents, load_registers
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.token_store import TokenStore
from pretrain.monitor.metrics import read_validation
from tests.german import german_texts
from tests.scripts.our_model import reader_of

ROOT = Path(__file__).resolve().parents[1]


def bytes_of_target(store: Path, corpus: Path) -> float:
    """By the text of its documents in the corpus."""
    texts = {row["id"]: row["text"] for row in map(json.loads, corpus.read_text().splitlines())}
    opened, n_bytes, n_targets = TokenStore.open(store), 0, 0
    for shard in range(len(opened.manifest.shards)):
        lengths = opened.lengths(shard)
        n_targets += int((lengths - 1).sum())
        ids = [info.id for info in opened.document_info(shard, np.arange(len(lengths)))]
        n_bytes += sum(len(texts[name].encode()) for name in ids)
    return n_bytes / n_targets


def bits_of(validation: Path) -> np.ndarray:
    """Of German and English after each step, (steps, 2); at a border those of the stage that begins."""
    values = {(line.step, line.store): line.bits_per_byte for line in read_validation(validation)}
    return np.array([[values[step, store] for store in ("de", "en")] for step in range(9)])


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
    rows = np.array([[float(cell) for cell in line.split("|")[1:-1]] for line in lines])
    assert rows[:, 0].tolist() == list(range(9))
    for run, columns in (("base", rows[:, 1:4]), ("extended", rows[:, 4:7])):
        german = bytes_of_target(out / f"{run}-de" / "val", corpora[1])
        np.testing.assert_allclose(columns[:, 0], np.arange(9) * 32 * 128 * german / 1e6, atol=0.006)
        np.testing.assert_allclose(columns[:, 1:], bits_of(out / run / "validation.csv"), atol=0.0006)
        assert columns[-1, 1] < 0.9 * columns[0, 1], "it learns German"
    assert (rows[:, 5] < rows[:, 2]).all(), "new tokens bring German"
    assert (rows[:, 6] > rows[:, 3]).all(), "and cost English"
    before, after = (
        reader_of(out / name) for name in ("initial-extended", "extended/iter-00000001-ckpt.pth")
    )
    for name in parameter_shapes(ModelConfig.load(out / "initial-extended")):
        changed = (before.read(name) != after.read(name)).nonzero()[:, 0].tolist()
        of_new_rows = name in ("transformer.wte.weight", "lm_head.weight")
        assert (min(changed) >= 320) if of_new_rows else (changed == []), name
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there already") == 6
