"""Drop near duplicates by MinHash: options, stages and steps of minhash.py.

shingles.py, minhash_index.py and near_duplicates.py have the method.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from data_prep.duplicates.items import Items, ItemWriter
from data_prep.duplicates.minhash_index import SignedWriter, document_starts, find_pairs
from data_prep.duplicates.near_duplicates import Dropped, choose, compare_pairs
from data_prep.duplicates.shingles import BATCH, Signer
from data_prep.stages.corpus import Call, CorpusDocument, file_name, open_corpus
from data_prep.stages.input_files import CorpusOptions
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import with_summary
from lit_gpt.cli import InputError
from lit_gpt.option_types import Fraction, PositiveInt


@dataclass(kw_only=True)
class SimilarityOptions:
    """Near duplicates."""

    min_similarity: Fraction = 0.7
    """Drop a document with at least this Jaccard similarity to an earlier one that stays."""


@dataclass(kw_only=True)
class Options(SimilarityOptions, CorpusOptions, ExecutionOptions):
    """Drop documents that nearly repeat an earlier one that stays. Run it after dedup.py or alone.

    Two documents are near duplicates if the Jaccard similarity of their sequences of words is high. MinHash
    finds the pairs to compare, with high probability, not with certainty; no other document is dropped.
    """

    words: PositiveInt = 5
    """Compare sequences of so many words. A document with fewer words stays."""
    bands: PositiveInt = 14
    """Compare two documents if they agree in one of so many bands of hashes."""
    hashes_per_band: PositiveInt = 8
    """Hashes in a band. With 14 bands of 8, two documents are compared with probability 0.56 if their
    similarity is 0.7, 0.92 if it is 0.8, and 0.9996 if it is 0.9."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Stages that drop near duplicates among `files`, which need not exist yet, into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    tasks, work, bands = options.n_tasks(len(files)), folder / "minhash", options.bands
    chosen = {
        name: getattr(options, name) for name in ("min_similarity", "words", "bands", "hashes_per_band")
    }
    read, write = open_corpus(files, options, folder, chosen | {"tasks": tasks})
    sign = partial(_sign, work, Signer(options.words, bands, options.hashes_per_band))
    pairs = Call("pairs", partial(find_pairs, work, tasks, bands))
    compare = Call("compare", partial(compare_pairs, work, tasks, bands, options.min_similarity))
    choice = Call("choose", partial(_choose, work, tasks, bands))
    drop = partial(_mark_near_duplicates, work, bands, options.min_similarity)
    stages = [
        Stage("minhash-signatures", [read, sign], tasks, folder),
        Stage("minhash-pairs", [pairs], tasks, folder),
        Stage("minhash-compare", [compare], tasks, folder),
        Stage("minhash-choose", [choice], 1, folder),
        Stage("minhash-drop", [read, drop, write], tasks, folder),
    ]
    return with_summary(stages, "Without near duplicates")


def _sign(
    work: Path, signer: Signer, data: Iterable[CorpusDocument], rank: int, world_size: int
) -> Iterator[CorpusDocument]:
    """Stage 1: write the shingles and signatures of the documents, and what to call them."""
    writer, names = SignedWriter(work, rank), ItemWriter(work / "names", rank)
    of_file: Counter[int] = Counter()
    batch: list[tuple[str, bytes]] = []
    size = 0

    def add() -> None:
        texts, called = zip(*batch, strict=True)
        writer.add(signer.sign(texts))
        names.add(b"".join(called), np.fromiter(map(len, called), np.int64))

    for document in data:
        called = orjson.dumps([document.file, of_file[document.file], document.id])
        batch.append((document.text, called))
        of_file[document.file] += 1
        size += len(document.text)
        if size >= BATCH:
            add()
            batch, size = [], 0
        yield document
    if batch:
        add()
    writer.close()
    names.close()


def _choose(work: Path, n_parts: int, bands: int, rank: int, world_size: int) -> dict[str, int]:
    """Stage 4: the stages before had as many shares as parts."""
    return choose(work, n_parts, bands, n_parts)


def _mark_near_duplicates(
    work: Path,
    bands: int,
    min_similarity: float,
    data: Iterable[CorpusDocument],
    rank: int,
    world_size: int,
) -> Iterator[CorpusDocument]:
    """Stage 5: mark the documents to drop, with the id of the one that stays and its place in documents/.

    Raises:
        InputError: the documents are not those that stage 1 signed.
    """
    if not all((work / "names" / f"{part:05d}.ends.npy").exists() for part in range(world_size)):
        raise InputError(f"{work.parent} was begun by an earlier revision: begin in a new folder")
    starts = document_starts(work, world_size, bands)
    first, last = starts[rank : rank + 2].tolist()
    dropped, names = Dropped(work, first, last), Items(work / "names", starts)
    number = first
    for document in data:
        if found := dropped.find(number):
            like, similarity = found
            file, line, like_id = orjson.loads(names.read(*names.bounds(like)))
            line += 1 - dropped.count(like - line, like)
            document.excluded = {
                "reason": "near_duplicate",
                "value": round(similarity, 4),
                "limit": min_similarity,
                "like": like_id,
                "like_at": f"{file_name(file)}:{line}",
            }
        number += 1
        yield document
    names.close()
    if number != last:
        raise InputError(f"the input changed while {work.parent} was made from it: begin in a new folder")
