"""Bytes of tokens: over whole stores they are the bytes of the texts."""

import itertools
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from data_prep.tokenizing.train import train_byte_level, train_sentencepiece
from lit_gpt.cli import InputError
from lit_gpt.store.token_bytes import TokenBytes, count_token_bytes
from lit_gpt.store.tokenizer import Tokenizer
from tests.german import german_texts

HARD = [
    "x",
    "\n\n zwei  Leerzeichen \t\r\n",
    "日本語 🙂 e\u0301 ﬁ \ufeff",
    "<0x41> </s><s><|im|>",
    "\x00\x1f\x7f\u0085",
    "Ġ▁",
]
TRAINERS = {"byte_level": train_byte_level, "sentencepiece": train_sentencepiece}


def texts() -> list[str]:
    """German-like ones, and characters from everywhere."""
    draw = random.Random(1)
    scattered = ["".join(map(chr, draw.choices(range(32, 0xD7FF), k=50))) for _ in range(50)]
    return [*itertools.islice(german_texts(60, seed=3), 60), *scattered, *HARD]


def bytes_of(counted: TokenBytes, ids: np.ndarray) -> int:
    return counted.of_labels(ids[:-1], ids[1:])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A trained tokenizer of each type."""
    base = tmp_path_factory.mktemp("tokenizers")
    for name, train in TRAINERS.items():
        train(german_texts(100, seed=8), 512, base / name, ["<|im|>"])
    return {name: base / name for name in TRAINERS}


def changed(folder: Path, to: Path, change) -> Path:
    """A copy whose tokenizer.json `change` has edited."""
    shutil.copytree(folder, to)
    definition = json.loads((to / "tokenizer.json").read_text())
    change(definition)
    (to / "tokenizer.json").write_text(json.dumps(definition))
    config = json.loads((to / "tokenizer_config.json").read_text())
    config.pop("add_prefix_space", None)
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("name", TRAINERS)
def test_tokens_of_any_text_have_its_bytes(folders, name):
    counted = count_token_bytes(folders[name])
    assert counted.notes == []
    tokenizer = Tokenizer.load(folders[name])
    for text, ids in zip(texts(), tokenizer.encode(texts()), strict=True):
        assert bytes_of(counted, ids) == len(text.encode())


def test_each_part_of_a_document_has_its_own_bytes(folders):
    """Labels are masked or shared between rows; what all rows count is the whole."""
    counted = count_token_bytes(folders["byte_level"])
    [ids] = Tokenizer.load(folders["byte_level"]).encode(["Grüße aus dem Wald " * 5])
    inputs, labels = ids[:-1].astype(int), ids[1:].astype(int)
    parts = [counted.of_labels(inputs[i : i + 7], labels[i : i + 7]) for i in range(0, len(labels), 7)]
    assert sum(parts) == bytes_of(counted, ids)
    half = np.where(np.arange(len(labels)) % 2, labels, -100)
    other = np.where(np.arange(len(labels)) % 2, -100, labels)
    halves = [counted.of_labels(inputs.reshape(1, -1), x.reshape(1, -1)) for x in (half, other)]
    assert sum(halves) == bytes_of(counted, ids)
    assert counted.of_labels(inputs, np.full_like(labels, -100)) == 0


def write_space_as_letter(definition: dict) -> None:
    """As SentencePiece's own tokens are."""
    model = definition["model"]
    model["vocab"] = {token.replace(" ", "▁"): number for token, number in model["vocab"].items()}
    model["merges"] = [[part.replace(" ", "▁") for part in merge] for merge in model["merges"]]


def like_llama_2(definition: dict) -> None:
    """`▁` is put before every text, whatever it begins with."""
    write_space_as_letter(definition)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    definition["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
    }


def like_mistral(definition: dict) -> None:
    """`▁` is put before a text that does not begin with a space."""
    write_space_as_letter(definition)
    scheme = {"replacement": "▁", "prepend_scheme": "first", "split": False}
    definition["pre_tokenizer"] = {"type": "Metaspace", **scheme}


@pytest.mark.parametrize("change", [like_llama_2, like_mistral])
def test_the_space_that_a_tokenizer_puts_before_a_text_is_no_byte_of_it(folders, tmp_path, change):
    folder = changed(folders["sentencepiece"], tmp_path / "tokenizer", change)
    counted, tokenizer = count_token_bytes(folder), Tokenizer.load(folder)
    assert "▁" in tokenizer.token(int(tokenizer.encode(["Wald"])[0][1]))
    for text in (text for text in texts() if "▁" not in text):
        [ids] = tokenizer.encode([text])
        unseen = int(change is like_mistral and text.startswith(" "))
        assert bytes_of(counted, ids) == len(text.encode()) - unseen
        assert bytes_of(counted, ids[1:]) <= len(text.encode())  # without BOS the first token is no target
    assert bytes_of(counted, tokenizer.encode([" Wald"])[0]) == (4 if change is like_mistral else 5)
    seen = [] if change is like_llama_2 else ["a space at a document's beginning is not seen"]
    assert counted.notes == seen
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    turn = np.array(backend.encode("<s><|im|>Wald<|im|>\nWald und Wald<|im|>", add_special_tokens=False).ids)
    assert bytes_of(counted, turn) == len("Wald\nWald und Wald")


def test_a_byte_level_tokenizer_may_put_a_space_before_a_text_too(folders, tmp_path):
    def change(definition: dict) -> None:
        definition["pre_tokenizer"] = tokenizers.pre_tokenizers.ByteLevel().__getstate__()
        definition["pre_tokenizer"] = json.loads(definition["pre_tokenizer"])

    folder = changed(folders["byte_level"], tmp_path / "tokenizer", change)
    counted, tokenizer = count_token_bytes(folder), Tokenizer.load(folder)
    assert (tokenizer.token(int(tokenizer.encode(["Wald"])[0][1])) or "").startswith("Ġ")
    for text in texts():
        assert bytes_of(counted, tokenizer.encode([text])[0]) == len(text.encode()) - text.startswith(" ")


def test_normalised_text_is_what_is_counted(folders, tmp_path):
    folder = changed(
        folders["byte_level"], tmp_path / "tokenizer", lambda d: d.update(normalizer={"type": "NFC"})
    )
    counted, tokenizer = count_token_bytes(folder), Tokenizer.load(folder)
    assert counted.notes == ["bytes are those of the text as normalised (NFC)"]
    assert bytes_of(counted, tokenizer.encode(["e\u0301"])[0]) == len("é".encode())


def test_added_tokens_are_text_and_unknown_characters_are_not_counted(folders, tmp_path):
    def change(definition: dict) -> None:
        write_space_as_letter(definition)
        model = definition["model"]
        model["vocab"] = {f"[{n}]" if t.startswith("<0x") else t: n for t, n in model["vocab"].items()}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
        added = {"id": len(model["vocab"]), "content": "\n", "special": False, **flags}
        definition["added_tokens"].append(added)
        scheme = {"replacement": "▁", "prepend_scheme": "never", "split": False}
        definition["pre_tokenizer"] = {"type": "Metaspace", **scheme}

    folder = changed(folders["sentencepiece"], tmp_path / "tokenizer", change)
    counted, tokenizer = count_token_bytes(folder), Tokenizer.load(folder)
    assert counted.notes == ["characters that the tokenizer does not know count as 0 bytes"]
    assert bytes_of(counted, tokenizer.encode(["ein\n und\n"])[0]) == 9
    assert bytes_of(counted, tokenizer.encode(["ein 日本 und"])[0]) == 8


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "change the length of texts"),
        ({"normalizer": {"type": "NFD"}}, "change the length of texts"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "not a BPE whose tokens are plain pieces"),
    ],
)
def test_tokens_that_do_not_say_their_bytes_are_refused(folders, tmp_path, rule, message):
    def change(definition: dict) -> None:
        for name, value in rule.items():
            definition[name] = definition["model"] | value if name == "model" else value

    folder = changed(folders["sentencepiece"], tmp_path / "tokenizer", change)
    with pytest.raises(ValueError, match=message):
        count_token_bytes(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError):
        count_token_bytes(tmp_path)


def test_of_a_given_tokenizer_known_texts_have_their_bytes(tokenizer_dir):
    """TEST_TOKENIZER names another folder: of a tokenizer that exists, such as that of a released model."""
    folder = os.environ.get("TEST_TOKENIZER", tokenizer_dir)
    counted, tokenizer = count_token_bytes(folder), Tokenizer.load(folder)
    for text in texts():
        [ids] = tokenizer.encode([text])
        assert tokenizer.unk_id in ids or bytes_of(counted, ids) == len(text.encode())
