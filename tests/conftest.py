"""Data that many tests share: a small German-like corpus, a tokenizer trained on it, and its stores."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from data_prep import tokenize_corpus
from data_prep.train_tokenizer import train

# No test is a measurement: a busy machine must not fail it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_STEMS = (
    "arbeit bahn brücke denk fahr garten grün hand haus jahr kind land luft macht mutter nacht öffn raum "
    "recht schule sprach stadt straße tag über vater wald wasser weg welt wetter wort zeit zimmer zug"
)
_SMALL = "der die das und in zu nicht ist von mit sich auf für ein eine dem den im auch als an es"
_ENDINGS = ["", "e", "en", "er", "lich", "ung", "heit", "chen", "keit", "ig"]


def german_texts(n_documents: int, seed: int) -> Iterator[str]:
    """Texts of very uneven length, from one line to a few pages, whose next word can be guessed in part."""
    rng = random.Random(seed)
    stems, small = _STEMS.split(), _SMALL.split()
    for _ in range(n_documents):
        paragraphs = []
        for _ in range(1 + int(rng.paretovariate(1.5)) % 12):
            words = []
            for _ in range(rng.randint(4, 60)):
                stem = rng.choice(stems)
                compound = stem.capitalize() + rng.choice(stems) * rng.randint(0, 1) + rng.choice(_ENDINGS)
                words += [rng.choice(small), compound if rng.random() < 0.6 else stem + rng.choice(_ENDINGS)]
            paragraphs.append(" ".join(words).capitalize() + rng.choice(".!?…"))
        yield "\n\n".join(paragraphs)


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two .jsonl files, 300 documents each, ids `page/0000`."""
    folder = tmp_path_factory.mktemp("corpus")
    files = [folder / "de-0.jsonl", folder / "de-1.jsonl"]
    texts = german_texts(600, seed=7)
    for half, file in enumerate(files):
        documents = [{"id": f"page/{300 * half + number:04d}", "text": next(texts)} for number in range(300)]
        file.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in documents), encoding="utf-8"
        )
    return files


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 512 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train(german_texts(100, seed=8), 512, folder)
    return folder


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory, corpus_files: list[Path], tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    tokenize_corpus.main(
        tokenize_corpus.Options(
            input=[str(file) for file in corpus_files],
            tokenizer=tokenizer_dir,
            output=folder / "train",
            val_output=folder / "val",
            val_fraction=0.1,
            max_shard_tokens=20_000,
            workers=1,
        )
    )
    return folder


@pytest.fixture(scope="session")
def train_store_dir(_stores: Path) -> Path:
    """A store of several shards. Never write into it: copy it first."""
    return _stores / "train"


@pytest.fixture(scope="session")
def val_store_dir(_stores: Path) -> Path:
    """A store of documents that are not in `train_store_dir`. Never write into it: copy it first."""
    return _stores / "val"
