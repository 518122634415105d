"""Compare minhash.py with datatrove's MinHash on the same text: what they drop, and their processor time.

    python scripts/bench_minhash.py --folder /scratch/bench --input 'corpus/*.jsonl.zst'

Edited copies are added to the input. The true Jaccard similarity of all pairs of documents is computed in
plain Python from word n-grams of datatrove's normalised text. The two take turns, each in its own process.
datatrove's steps get the reading, writing and execution of minhash.py, and split words at spaces: no spaCy.
"""

import multiprocessing
import os
import random
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.text import simplify_text

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from data_prep.duplicates import minhash
from data_prep.reading.documents import read_documents
from data_prep.reading.inputs import find_files
from data_prep.reading.rejects import Rejects
from data_prep.stages.corpus import CorpusDocument, kept_files, open_corpus
from data_prep.stages.pipeline import Stage, run_stages
from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveInt
from scripts.bench.measurement import in_turns

BANDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Lower bounds of the similarity."""


@dataclass
class Options:
    """Add edited copies to documents, drop near duplicates in two ways, and compare with brute force."""

    folder: Path
    """Where the corpus and the results go."""
    input: list[str]
    """Files of documents."""
    copies: PositiveInt = 6000
    """Edited copies to add."""
    turns: PositiveInt = 3
    """How often each is timed."""


def main(options: Options) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    corpus = options.folder / "corpus.jsonl"
    texts = [document.text for document in read_documents(find_files(options.input), Rejects())]
    texts += edited_copies(texts, options.copies)
    random.Random(1).shuffle(texts)
    lines = (orjson.dumps({"id": str(number), "text": text}) + b"\n" for number, text in enumerate(texts))
    corpus.write_bytes(b"".join(lines))
    ways = {"minhash.py": minhash.plan, "datatrove": plan_of_datatrove}
    works = {way: partial(_run, plan, corpus, options.folder / way) for way, plan in ways.items()}
    seconds = in_turns({way: partial(_timed, work) for way, work in works.items()}, options.turns)
    size = corpus.stat().st_size / 1e6
    for way, each in seconds.items():
        least, most = size / max(each), size / min(each)
        print(f"{way:12} {size / statistics.median(each):.1f} MB a CPU second ({least:.1f} to {most:.1f})")
    grams = [word_n_grams(simplify_text(text).split()) for text in texts]
    first, second, similarity = similar_pairs(grams)
    print(f"{size:.1f} MB, {len(texts):,} documents, {len(first):,} pairs of similarity {BANDS[0]} or more")
    stays = {}
    for way in ways:
        kept = read_documents(kept_files(options.folder / way, 1), Rejects())
        stays[way] = np.isin(np.arange(len(texts)), [int(document.id) for document in kept])
    print("\n".join(table(first, second, similarity, stays)))


def edited_copies(texts: list[str], n_copies: int) -> list[str]:
    """Copies with words replaced, sentences cut or moved in; one of three edits the copy before it."""
    rng = random.Random(0)
    originals = [text for text in texts if 80 < len(text.split()) < 3000]
    vocabulary = " ".join(originals[:500]).split()
    copies: list[str] = []
    for _ in range(n_copies):
        text = copies[-1] if copies and rng.random() < 1 / 3 else rng.choice(originals)
        share = rng.choice([0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06])
        words = [rng.choice(vocabulary) if rng.random() < share else word for word in text.split(" ")]
        cut = rng.randrange(len(words) + 1)
        other = rng.choice(originals).split(" ")[: rng.choice([0, 0, 10, len(words) // 6])]
        n_cut = rng.choice([0, 0, 5, len(words) // 8])
        copies.append(" ".join(words[:cut] + other + words[cut + n_cut :]))
    return copies


def _timed(work: Any) -> float:
    """User and system time of a process that does the work, without start and imports."""
    process = multiprocessing.get_context("fork").Process(target=work)
    before = os.times()
    process.start()
    process.join()
    after = os.times()
    assert process.exitcode == 0
    return sum(after[2:4]) - sum(before[2:4])


def _run(plan: Any, corpus: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    options = minhash.Options(input=[str(corpus)], output=output, tasks=1, workers=1)
    run_stages(plan([corpus], options, output), options, output, Path(__file__))


def plan_of_datatrove(files: list[Path], options: minhash.Options, folder: Path) -> list[Stage]:
    """datatrove's signatures, pairs and clusters between the first and the last step of minhash.py."""
    read, write = open_corpus(files, options, folder, {})
    config = MinhashConfig(options.words, options.bands, options.hashes_per_band)
    signatures, pairs, removed = (str(folder / name) for name in ("signatures", "pairs", "removed"))
    buckets = MinhashDedupBuckets(signatures, pairs, config=config)
    return [
        Stage("signatures", [read, Signatures(signatures, config)], 1, folder),
        Stage("pairs", [_Once(buckets)], options.bands, folder),
        Stage("cluster", [_Once(MinhashDedupCluster(pairs, removed, config=config))], 1, folder),
        Stage("drop", [read, partial(_mark_removed, Path(removed)), write], 1, folder),
    ]


class _Words:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


class Signatures(MinhashDedupSignature):
    """datatrove's signatures, with words split at spaces."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language="chr_Cher")  # a language that needs no package
        self.word_tokenizer = _Words()
        self._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 refuses str

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        super().run(data, rank, world_size)
        yield from ()


class _Once(PipelineStep):
    """A step whose `run` returns None, made fit for a pipeline."""

    type, name = "DEDUP", "minhash"

    def __init__(self, step: PipelineStep) -> None:
        super().__init__()
        self.step = step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        self.step.run(None, rank, world_size)
        yield from ()


def _mark_removed(
    folder: Path, data: Iterable[CorpusDocument], rank: int, world_size: int
) -> Iterator[CorpusDocument]:
    path = folder / f"{rank:06d}.remove"
    removed = set(np.fromfile(path, "<u4").tolist()) if path.exists() else set()
    for number, document in enumerate(data):
        document.excluded = {"reason": "near_duplicate"} if number in removed else None
        yield document


def word_n_grams(words: list[str], n: int = 5) -> set[tuple[str, ...]]:
    return set(zip(*(words[offset:] for offset in range(n)), strict=False))


def similar_pairs(sets: list[set[tuple[str, ...]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (first < second) of sets with a Jaccard similarity of at least BANDS[0], and the similarity.

    Such a pair has at least half of the larger set in common, so one of the rarer half of its elements, too.
    """
    numbers: dict[tuple[str, ...], int] = {}
    arrays = [np.array([numbers.setdefault(gram, len(numbers)) for gram in each], np.int64) for each in sets]
    counts = np.bincount(np.concatenate(arrays), minlength=len(numbers))
    rare = [each[np.lexsort((each, counts[each]))][: len(each) // 2 + 1] for each in arrays]
    document = np.repeat(np.arange(len(sets)), [len(each) for each in rare])
    element = np.concatenate(rare)
    order = np.lexsort((document, element))
    document, element = document[order], element[order]
    found, distance, at = [], 1, np.arange(len(element))
    while len(at):
        at = at[at + distance < len(element)]
        at = at[element[at] == element[at + distance]]
        found.append(np.unique(document[at] * len(sets) + document[at + distance]))
        distance += 1
    candidates = np.unique(np.concatenate(found))
    first, second = np.divmod(candidates, len(sets))
    similarity = np.array(
        [
            (common := len(sets[one] & sets[other])) / (len(sets[one]) + len(sets[other]) - common)
            for one, other in zip(first.tolist(), second.tolist(), strict=True)
        ]
    )
    is_similar = similarity >= BANDS[0]
    return first[is_similar], second[is_similar], similarity[is_similar]


def table(
    first: np.ndarray, second: np.ndarray, similarity: np.ndarray, stays: dict[str, np.ndarray]
) -> Iterator[str]:
    """Markdown by similarity: the pairs of which at most one stays; the dropped documents by the most similar
    document that stays."""
    titles = ["pairs", "formula", *(f"{what} by {way}" for what in ("found", "dropped") for way in stays)]
    yield f"| similarity from | {' | '.join(titles)} |"
    yield "|---" + "|---:" * len(titles) + "|"
    best = {way: _most_similar_that_stays(first, second, similarity, stay) for way, stay in stays.items()}
    dropped = {way: np.histogram(best[way][~stay], (0, *BANDS, 2))[0] for way, stay in stays.items()}
    yield "| 0 | | | | | " + " | ".join(str(each[0]) for each in dropped.values()) + " |"
    for number, (low, high) in enumerate(zip(BANDS, (*BANDS[1:], 2), strict=True), start=1):
        inside = (similarity >= low) & (similarity < high)
        n = max(int(inside.sum()), 1)
        formula = (1 - (1 - similarity[inside] ** 8) ** 14).sum() / n
        shares = [1 - (stay[first] & stay[second])[inside].sum() / n for stay in stays.values()]
        cells = [f"{inside.sum():,}", *(f"{share:.1%}" for share in (formula, *shares))]
        cells += [f"{each[number]:,}" for each in dropped.values()]
        yield f"| {low} | " + " | ".join(cells) + " |"


def _most_similar_that_stays(
    first: np.ndarray, second: np.ndarray, similarity: np.ndarray, stay: np.ndarray
) -> np.ndarray:
    best = np.zeros(len(stay))
    np.maximum.at(best, first, np.where(stay[second], similarity, 0))
    np.maximum.at(best, second, np.where(stay[first], similarity, 0))
    return best


if __name__ == "__main__":
    run_command(Options, main)
