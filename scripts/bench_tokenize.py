"""Measure tokenizing: plain and through the word cache on one core, and the complete pipeline on several.

python scripts/bench_tokenize.py --input FILE FILE --tokenizer DIR
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.processes import n_cores, ordered_map
from data_prep.reading.batches import read_batches
from data_prep.reading.documents import ID_FIELDS, TEXT_FIELDS, read_documents
from data_prep.reading.inputs import find_files
from data_prep.reading.rejects import Rejects
from data_prep.tokenizing.work import encode_batch
from lit_gpt.cli import InputError, run_command
from lit_gpt.option_types import PositiveInt
from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.tokenizer import Tokenizer
from scripts.bench.measurement import in_turns

_ROUNDS_BEFORE, _ROUNDS = 2, 5  # passes over the files, the first of them not timed


@dataclass
class Options:
    """Measure tokenizing: MB (10^6 bytes of UTF-8 text) a second.

    On one core, by CPU time: the last file, plain, with an empty word cache, and with one that has seen the
    other files. Then the pipeline of tokenize_corpus.py (read, parse, encode, write) by wall-clock time.
    """

    input: list[str]
    """Two files or more; the last is measured."""
    tokenizer: Path
    """Folder of the tokenizer."""
    repeats: PositiveInt = 3
    """Number of measurements, in turns; the median counts."""
    workers: PositiveInt | None = None
    """Processes of the pipeline; default: one per core."""


def main(options: Options) -> None:
    files = find_files(options.input)
    if len(files) < 2:
        raise InputError("--input names one file; give at least two, the last of them is measured")
    set_aside = Rejects()
    before = [document.text for document in read_documents(files[:-1], set_aside)]
    measured = [document.text for document in read_documents(files[-1:], set_aside)]
    megabytes = sum(len(text.encode()) for text in measured) / 1e6
    encode = partial(_cpu_seconds, options.tokenizer, measured)
    ways = {
        "plain": partial(encode, cache_words=False),
        "word cache, cold": encode,
        "word cache, warmed": partial(encode, before=before),
    }
    seconds = in_turns(ways, options.repeats)
    rates = {name: megabytes / statistics.median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:20} {rate:6.2f} MB/s a core, {rate / rates['plain']:5.2f} x plain")
    sizes = {1, options.workers or n_cores()}
    pipelines = in_turns(
        {workers: partial(_pipeline_rate, files, options.tokenizer, workers) for workers in sorted(sizes)},
        options.repeats,
    )
    for workers, measurements in pipelines.items():
        rate = statistics.median(measurements)
        ratio = rate / statistics.median(pipelines[1])
        print(f"pipeline, {workers:3} cores  {rate:6.2f} MB/s, {ratio:5.2f} x one core")


def _cpu_seconds(
    folder: Path, texts: list[str], cache_words: bool = True, before: list[str] | None = None
) -> float:
    """Encode `texts`, not counting the time for the texts `before`."""
    tokenizer = Tokenizer.load(folder, cache_words=cache_words)
    if before:
        tokenizer.encode(before)
    start = time.process_time()
    tokenizer.encode(texts)
    return time.process_time() - start


def _pipeline_rate(files: list[Path], tokenizer: Path, workers: int) -> float:
    """MB a second of tokenize_corpus.py's pipeline from files to a store, on as many cores as workers.

    The first passes over the files are not timed: processes start, and their caches fill.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:workers])
    batches = (batch for _ in range(_ROUNDS) for file in files for batch in read_batches(file))
    encode = partial(
        encode_batch, tokenizer=tokenizer, text_fields=TEXT_FIELDS, id_fields=ID_FIELDS, val_fraction=0.0
    )
    files_done, start, n_bytes = 0, time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        writer = TokenStoreWriter(Path(folder) / "store", Tokenizer.load(tokenizer))
        for encoded in ordered_map(encode, batches, workers):
            share = encoded.shares[0]
            source = encoded.batch.source
            writer.add_many(share.ids, source, share.source_lines, share.lengths, share.tokens)
            n_bytes += share.text_bytes
            files_done += encoded.batch.file_hash is not None
            if files_done == _ROUNDS_BEFORE * len(files) and encoded.batch.file_hash is not None:
                start, n_bytes = time.perf_counter(), 0
    os.sched_setaffinity(0, cores)
    return n_bytes / 1e6 / (time.perf_counter() - start)


if __name__ == "__main__":
    run_command(Options, main)
