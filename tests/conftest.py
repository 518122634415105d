"""Data that many tests share: a small German-like corpus, a tokenizer trained on it, and its stores."""

import json
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from data_prep.tokenizing import job
from data_prep.tokenizing.train import train_byte_level
from tests.cluster.local_slurm import LocalSlurm
from tests.german import german_texts
from tests.masked_stores import conversations, masked_store

# No test is a measurement: a busy machine must not fail it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def work_unit(file: str) -> str:
    """Name the tests that one worker runs: those of a file; all that need SLURM, which share a cluster."""
    return "slurm" if file.startswith("tests/cluster/") or "slurm" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out work units in the order of their tests."""
    from xdist.scheduler import LoadFileScheduling

    class ByWorkUnit(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_unit(super()._split_scope(nodeid))

    config.option.loadscopereorder = False
    return ByWorkUnit(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with SLURM and the slow files: at the end are short ones, with which no worker is long alone."""
    if not hasattr(config, "workerinput"):
        return
    units = {item: work_unit(item.nodeid.split("::")[0]) for item in items}
    slow = {unit for item, unit in units.items() if item.get_closest_marker("slow")}
    sizes = Counter(units.values())
    items.sort(key=lambda item: (units[item] != "slurm", units[item] not in slow, -sizes[units[item]]))


@pytest.fixture(scope="module", autouse=True)
def _fork_server_of_a_file() -> Iterator[None]:
    """End the server that a file's processes forked from: the next file's has other modules and variables."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


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
    train_byte_level(german_texts(100, seed=8), 512, folder)
    return folder


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory, corpus_files: list[Path], tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    job.tokenize(
        job.Options(
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


@pytest.fixture(scope="session")
def masked_store_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A masked store of several shards, of `tokenizer_dir`. Never write into it: copy it first."""
    return masked_store(tmp_path_factory.mktemp("masked") / "chat", tokenizer_dir, conversations(300))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    """A running SLURM cluster of two nodes; skips where it cannot be had."""
    cluster = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except RuntimeError as error:
        pytest.skip(f"no SLURM here: {error}")
    yield cluster
    cluster.stop()
