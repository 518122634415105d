"""Measure the search for near duplicates on any number of generated documents: time, memory, correctness.

    python scripts/bench_minhash_scale.py --folder /scratch/bench --documents 10000000

Text is left out: documents are sets of random shingles, and 3 of 10 are an edited copy of an earlier one. The
generator knows which, so the result can be checked. Reading text and dropping from it take time in proportion
to it, and scripts/bench_minhash.py measures that.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from data_prep.duplicates.minhash_index import SignedWriter, find_pairs
from data_prep.duplicates.near_duplicates import SIMILAR, choose, compare_pairs
from data_prep.duplicates.shingles import Signer
from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveInt

SHINGLES = 48  # of a document
MOST_EDITS = 4  # different shingles of a copy: 0 to 4, a similarity of 1 to 0.846
BANDS = 14
BATCH = 1 << 12


@dataclass
class Options:
    """Generate signed documents, find the near duplicates, and report."""

    folder: Path
    """Where the files go, about 600 bytes a document; it must not exist."""
    documents: PositiveInt = 1_000_000
    """Number of documents."""
    parts: PositiveInt = 16
    """Parts of the input and shares of the work."""


def main(options: Options) -> None:
    """Do each stage in a process of its own, one share after the other."""
    options.folder.mkdir(parents=True)
    folder, n = options.folder, options.parts
    edges = np.linspace(0, options.documents, n + 1).astype(np.int64)
    shares: dict[str, Callable[[int], Any]] = {
        "signatures": lambda part: write_part(folder, part, edges[part], edges[part + 1]),
        "pairs": lambda share: find_pairs(folder, n, BANDS, share, n),
        "compare": lambda share: compare_pairs(folder, n, BANDS, 0.7, share, n),
    }
    for stage, work in shares.items():
        _in_process(stage, partial(_all_shares, work, n))
    _in_process("choose", partial(choose, folder, n, BANDS, n))
    for name in ("signatures", "shingles", "pairs", "similar"):
        size = sum(path.stat().st_size for path in (folder / name).iterdir())
        print(f"disk {name:12} {size / options.documents:8.1f} bytes a document")
    dropped = np.fromfile(folder / "dropped.bin", SIMILAR)["document"].astype(np.int64)
    n_copies = sum(int(is_copy(np.arange(*each)).sum()) for each in np.stack((edges[:-1], edges[1:]), 1))
    print(f"dropped {len(dropped):,} of {n_copies:,} copies, {len(dropped) / n_copies:.2%}")
    print(f"and {(~is_copy(dropped)).sum()} documents that are no copies")


def _all_shares(work: Callable[[int], Any], n_shares: int) -> None:
    for share in range(n_shares):
        work(share)


def _in_process(stage: str, work: Callable[[], Any]) -> None:
    """Run work in a fresh process, which prints its CPU time and its maximum resident set."""

    def measured() -> None:
        begun = time.process_time()
        work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{stage:12} {time.process_time() - begun:8.1f} CPU seconds {peak:8.0f} MB", flush=True)

    process = multiprocessing.get_context("fork").Process(target=measured)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"stage {stage} failed")


def is_copy(documents: np.ndarray) -> np.ndarray:
    return (documents >= 10) & (documents % 10 >= 7)


def write_part(folder: Path, part: int, first: int, last: int) -> None:
    """Sign the documents from number `first` to `last` - 1."""
    writer, signer = SignedWriter(folder, part), Signer(5, BANDS, 8)
    for start in range(first, last, BATCH):
        documents = np.arange(start, min(start + BATCH, last), dtype=np.uint64)
        shingles = np.sort(shingles_of(documents), axis=1)
        writer.add(signer.sign_sets(shingles.ravel(), np.full(len(documents), SHINGLES)))
    writer.close()


def shingles_of(documents: np.ndarray) -> np.ndarray:
    """uint32 (documents, SHINGLES): those of the document, or of the one it copies with some replaced."""
    draw = _hash(documents)
    source = draw % np.maximum(documents // 10, 1) * 10 + (draw >> 40) % 7
    origin = np.where(is_copy(documents), source, documents)
    n_edits = np.where(is_copy(documents), (draw >> 20) % (MOST_EDITS + 1), 0)
    columns = np.arange(SHINGLES, dtype=np.uint64)
    owner = np.where(columns < n_edits[:, None], documents[:, None], origin[:, None])
    return (_hash(owner * SHINGLES + columns) >> 32).astype(np.uint32)


def _hash(values: np.ndarray) -> np.ndarray:
    """Splitmix64 of uint64 values."""
    mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


if __name__ == "__main__":
    run_command(Options, main)
