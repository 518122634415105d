"""Drop near duplicates by datatrove's MinHash: options, stages and steps of minhash.py."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)

from data_prep.stages.corpus import CorpusDocument, CorpusOptions, open_corpus
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import with_summary
from lit_gpt.option_types import PositiveInt


@dataclass(kw_only=True)
class Options(CorpusOptions, ExecutionOptions):
    """Drop documents that nearly repeat another, by MinHash. Run it after dedup.py or alone.

    One document of each group of near duplicates stays: the same one for any number of tasks, not always the
    first. MinHash finds near duplicates with high probability, not with certainty.
    """

    words: PositiveInt = 5
    """Compare sequences of so many words."""
    bands: PositiveInt = 14
    """Compare two documents if they agree in one of so many bands of hashes."""
    hashes_per_band: PositiveInt = 8
    """Hashes in a band. With 14 bands of 8, two documents with a Jaccard similarity of 0.72 are compared with
    probability 0.65."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Stages that drop near duplicates among `files`, which need not exist yet, into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    tasks, work = options.n_tasks(len(files)), folder / "minhash"
    chosen = {name: getattr(options, name) for name in ("words", "bands", "hashes_per_band")}
    read, write = open_corpus(files, options, folder, chosen | {"tasks": tasks})
    config = MinhashConfig(
        n_grams=options.words, num_buckets=options.bands, hashes_per_bucket=options.hashes_per_band
    )
    sign = SignDocuments(work / "signatures", config)
    pairs = MinhashDedupBuckets(str(work / "signatures"), str(work / "pairs"), config=config)
    cluster = MinhashDedupCluster(str(work / "pairs"), str(work / "removed"), config=config)
    drop = partial(_mark_near_duplicates, work / "removed")
    stages = [
        Stage("minhash-signatures", [read, sign], tasks, folder),
        Stage("minhash-pairs", [RunAtOnce(pairs)], options.bands, folder),
        Stage("minhash-cluster", [RunAtOnce(cluster)], 1, folder),  # holds all pairs in memory
        Stage("minhash-drop", [read, drop, write], tasks, folder),
    ]
    return with_summary(stages, "Without near duplicates")


class _Words:
    """Splits at white space: datatrove has removed punctuation before."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def _hash(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())


class SignDocuments(MinhashDedupSignature):
    """datatrove's signatures without spaCy, which it uses to split most languages into words."""

    def __init__(self, folder: Path, config: MinhashConfig) -> None:
        super().__init__(str(folder), config, language="chr_Cher")  # a language that needs no package
        self.word_tokenizer = _Words()
        self._hash_func = _hash  # datatrove's passes str, which xxhash 4 refuses

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        super().run(data, rank, world_size)
        yield from ()


class RunAtOnce(PipelineStep):
    """Wraps a datatrove step whose `run` returns None, so that it works in the middle of a pipeline."""

    type, name = "DEDUP", "minhash"

    def __init__(self, step: PipelineStep) -> None:
        super().__init__()
        self.step = step
        self.stats = step.stats

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        self.step.run(None, rank, world_size)
        yield from ()


def _mark_near_duplicates(
    folder: Path, data: Iterable[CorpusDocument], rank: int, world_size: int
) -> Iterator[CorpusDocument]:
    """Mark the documents that datatrove's clustering has listed for removal."""
    path = folder / f"{rank:06d}.remove"
    removed = set(np.fromfile(path, "<u4").tolist()) if path.exists() else set()
    for number, document in enumerate(data):
        if number in removed:
            document.excluded = {"reason": "near_duplicate"}
        yield document
