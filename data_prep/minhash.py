"""Drop documents that nearly repeat another, by datatrove's MinHash: after dedup.py or instead of it.

Documents whose sets of word sequences are alike are found with high probability, not surely. Of each group of
them one stays: the same for any number of tasks, but not always the first. The third stage holds all pairs
that were found in memory.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster

from data_prep.stages.corpus import CorpusOptions, ReadFiles, WriteFiles, fields_given, input_files
from data_prep.stages.minhash_steps import MarkNearDuplicates, RunWhole, SignDocuments
from data_prep.stages.pipeline import ExecutionOptions, Stage, run_stages, settle
from data_prep.stages.summary import Summarise, in_short
from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveInt


@dataclass(kw_only=True)
class Options(ExecutionOptions, CorpusOptions):
    """Drop documents that nearly repeat another."""

    words: PositiveInt = 5
    """Length of the word sequences that are compared."""
    bands: PositiveInt = 14
    """Two documents are compared when they agree in one of so many bands."""
    hashes_per_band: PositiveInt = 8
    """Two that share (1 / bands) ^ (1 / hashes_per_band) = 0.72 of their sequences agree as often as not."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Near-deduplication of `files`, which need not exist yet, into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    tasks = options.n_tasks(len(files))
    settings = {
        "files": files,
        **fields_given(options),
        "words": options.words,
        "bands": options.bands,
        "hashes_per_band": options.hashes_per_band,
        "tasks": tasks,
    }
    settle(folder, settings)
    config = MinhashConfig(
        n_grams=options.words, num_buckets=options.bands, hashes_per_bucket=options.hashes_per_band
    )
    work = folder / "minhash"
    pairs = MinhashDedupBuckets(str(work / "signatures"), str(work / "pairs"), config=config)
    cluster = MinhashDedupCluster(str(work / "pairs"), str(work / "removed"), config=config)
    read = ReadFiles(files, options.read_as(), folder, options.max_bad_lines)
    names = ["minhash-signatures", "minhash-pairs", "minhash-cluster", "minhash-drop"]
    drop = [read, MarkNearDuplicates(work / "removed"), WriteFiles(files, folder)]
    return [
        Stage(names[0], [read, SignDocuments(work / "signatures", config)], tasks, folder),
        Stage(names[1], [RunWhole(pairs)], options.bands, folder),
        Stage(names[2], [RunWhole(cluster)], 1, folder),
        Stage(names[3], drop, tasks, folder),
        Stage("minhash-summary", [Summarise(folder, "Without near duplicates", names)], 1, folder),
    ]


def main(options: Options) -> None:
    """Plan, run or submit."""
    stages = plan(input_files(options, options.stage is not None), options, options.output)
    if run_stages(stages, options, options.output, Path(__file__)):
        print(in_short(options.output))


if __name__ == "__main__":
    run_command(Options, main)
