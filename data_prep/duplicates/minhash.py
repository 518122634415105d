"""Drop near duplicates by MinHash: options, stages and steps of minhash.py.

shingles.py, minhash_index.py and near_duplicates.py have the method.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.duplicates.minhash_index import SignedWriter, document_starts, find_pairs
from data_prep.duplicates.near_duplicates import Dropped, choose, compare_pairs
from data_prep.duplicates.shingles import BATCH, Signer
from data_prep.stages.corpus import Call, CorpusDocument, CorpusOptions, open_corpus
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import with_summary
from lit_gpt.cli import InputError
from lit_gpt.option_types import Fraction, PositiveInt


@dataclass(kw_only=True)
class Options(CorpusOptions, ExecutionOptions):
    """Drop documents that nearly repeat an earlier one that stays. Run it after dedup.py or alone.

    Two documents are near duplicates if the Jaccard similarity of their sequences of words is high. MinHash
    finds the pairs to compare, with high probability, not with certainty; no other document is dropped.
    """

    min_similarity: Fraction = 0.7
    """Drop a document with at least this Jaccard similarity to an earlier one that stays."""
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
    """Stage 1: write the shingles and signatures of the documents."""
    writer = SignedWriter(work, rank)
    texts: list[str] = []
    size = 0
    for document in data:
        texts.append(document.text)
        size += len(document.text)
        if size >= BATCH:
            writer.add(signer.sign(texts))
            texts, size = [], 0
        yield document
    if texts:
        writer.add(signer.sign(texts))
    writer.close()


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
    """Stage 5: mark the documents to drop, with the number in the input of the one that stays.

    Raises:
        InputError: the documents are not those that stage 1 signed.
    """
    first, last = document_starts(work, world_size, bands)[rank : rank + 2].tolist()
    dropped = Dropped(work, first, last)
    number = first
    for document in data:
        if found := dropped.find(number):
            like, similarity = found
            document.excluded = {
                "reason": "near_duplicate",
                "value": round(similarity, 4),
                "limit": min_similarity,
                "like": like,
            }
        number += 1
        yield document
    if number != last:
        raise InputError(f"the input changed while {work.parent} was made from it: begin in a new folder")
