"""The same text gives the same tokenizer, of which every file has its share."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.reading.documents import sample_texts
from data_prep.reading.rejects import Rejects
from data_prep.tokenizing.train import Options, train_tokenizer
from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "data_prep" / "train_tokenizer.py"


def test_special_tokens_come_first_and_nothing_is_unknown(corpus_files: list[Path], tmp_path: Path):
    options = Options([str(file) for file in corpus_files], tmp_path / "t", vocab_size=500)
    train_tokenizer(options)
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, None)
    assert tokenizer.vocab_size == 512  # the next multiple of 64
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    text = json.loads(corpus_files[0].read_text().splitlines()[0])["text"]
    assert len(tokenizer.encode([text])[0]) < len(text) * 0.7
    with pytest.raises(InputError, match="holds a tokenizer already"):
        train_tokenizer(options)


@pytest.mark.slow
def test_threads_and_hash_seeds_make_no_difference(corpus_files: list[Path], tmp_path: Path):
    written = set()
    for number in ("1", "2", "3"):
        words = [sys.executable, str(SCRIPT), "--input", *map(str, corpus_files), "--vocab_size", "704"]
        environment = os.environ | {"RAYON_NUM_THREADS": number, "PYTHONHASHSEED": number}
        subprocess.run([*words, "--output", str(tmp_path / number)], check=True, env=environment)
        written.add((tmp_path / number / "tokenizer.json").read_bytes())
    assert len(written) == 1


def test_every_file_is_sampled_by_its_size(tmp_path: Path):
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for file, count in zip(files, (300, 100, 1), strict=True):
        file.write_text(f'{{"text": "{file.stem * 90}"}}\n' * count)
    taken = Counter(text[0] for text in sample_texts(files, 401 * 90 / 4, Rejects(), ["text"]))
    assert (taken["a"], taken["b"], taken["c"]) == (75, 25, 1)
    assert sum(1 for _ in sample_texts(files, 1e9, Rejects(), ["text"])) == 401


def test_mistakes_are_one_line(corpus_files: list[Path], tmp_path: Path):
    (tmp_path / "few.jsonl").write_text('{"text": "wenig"}\n{\n')
    (tmp_path / "none.jsonl").write_text("\n")
    some, few, none = str(corpus_files[0]), str(tmp_path / "few.jsonl"), str(tmp_path / "none.jsonl")
    cases = [
        (Options([some], tmp_path / "t", vocab_size=64), "too small"),
        (Options([few], tmp_path / "t", vocab_size=1024), "more text or a smaller one"),
        (Options([none], tmp_path / "t", vocab_size=1024), "no document in"),
        (Options([few], tmp_path / "t", max_bad_lines=0), "more than 0 unusable lines"),
        (Options([few], tmp_path / "t", text_fields=["body"]), "none of body"),
        (Options([str(tmp_path / "nowhere")], tmp_path / "t"), "names no file"),
    ]
    for options, says in cases:
        with pytest.raises(InputError, match=says):
            train_tokenizer(options)
        assert not (tmp_path / "t").exists()
