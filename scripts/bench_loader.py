"""Compare the loader with others: the same tokens, the same batch shape, one process, in turns.

    python scripts/bench_loader.py --store STORE

Prints Markdown tables. Speed is targets a second that are not padding, by wall-clock time and by the
process's CPU time (user and system, all threads), which other programs disturb less. Libraries that are
not installed are named and left out.
"""

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveFloat, PositiveInt
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from pretrain.data.dataloader import DataLoader
from pretrain.data.numbering import Numbering
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.log import DatapointLog
from pretrain.options import DataOptions
from scripts.bench.measurement import in_turns
from scripts.bench.other_loaders import OTHERS, Batches


@dataclass
class Options:
    """Compare the loader with others, and measure packing, log and resume."""

    store: Path
    """Token store to read."""
    block_size: PositiveInt = 2048
    """Targets in a row."""
    micro_batch_size: PositiveInt = 8
    """Rows of a batch."""
    global_batch_size: PositiveInt = 64
    """Rows of a step of our loader."""
    seconds: PositiveFloat = 1.0
    """Length of a turn."""
    rounds: PositiveInt = 9
    """Number of turns of each loader; the medians are printed."""
    commit_rows: PositiveInt = 1 << 15
    """Rows after which the log is written; a real run writes more at a time, which costs less per row."""
    work_dir: Path | None = None
    """Folder for the other libraries' copies of the tokens; default: a temporary one."""


class Turn(NamedTuple):
    """What a loader did in one turn."""

    by_clock: float
    """Million targets a second of wall-clock time."""
    by_cpu: float
    """And of CPU time."""
    cpu_seconds: float


def take_turn(targets: Iterator[int], seconds: float) -> Turn:
    """Read batches for this long; `targets` yields the number of targets of each batch, without end."""
    started, used, total = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        total += next(targets)
    used = time.process_time() - used
    return Turn(total / elapsed / 1e6, total / used / 1e6, used)


def main(options: Options) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as temporary:
        folder = options.work_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = TrainingData.open(
            DataOptions([str(options.store)], block_size=options.block_size, packing_dir=str(folder))
        )
        store = data.stores[0].store
        print(f"{store.n_documents:,} documents, {store.n_tokens:,} tokens in {store.n_shards} shard(s)\n")
        _compare(options, data, folder)
        _print_packing(options, store, folder)
        _print_log(folder / "logged")
        _print_resume(options, data)


# ---- speed


def _compare(options: Options, data: TrainingData, folder: Path) -> None:
    log_seconds = [0.0]
    loaders = {
        "ours, logged": _ours(options, data, folder / "logged", log_seconds),
        "ours, logged, by its thread": _ours(options, data, folder / "threaded", prefetch=2),
        "ours, not logged": _ours(options, data, None),
    }
    for name, batches_of in OTHERS.items():
        try:
            batches = batches_of(data.stores[0].store, folder, options.micro_batch_size, options.block_size)
            next(batches)  # writes its copy of the tokens, too
            loaders[name] = _count(options, batches)
        except ImportError as error:
            print(f"left out: {name} ({error})")
    turns = in_turns(
        {name: partial(take_turn, targets, options.seconds) for name, targets in loaders.items()},
        1 + options.rounds,
        show_progress=True,
    )
    print("| loader | Mtok/s by the clock | ours is | Mtok/s by CPU time | ours is |")
    print("|---|---|---|---|---|")
    # The first turn warms up.
    rates = {
        name: [statistics.median(rates[1:]) for rates in zip(*t, strict=True)] for name, t in turns.items()
    }
    ours = rates["ours, logged"]
    for name, (clock, cpu, _) in rates.items():
        print(f"| {name} | {clock:.0f} | {ours[0] / clock:.2f} x | {cpu:.0f} | {ours[1] / cpu:.2f} x |")
    share = log_seconds[0] / sum(turn.cpu_seconds for turn in turns["ours, logged"])
    print(f"\nLogging takes {share:.1%} of our CPU time.\n")


def _count(options: Options, batches: Batches) -> Iterator[int]:
    for _ in batches:
        yield options.micro_batch_size * options.block_size


def _ours(
    options: Options,
    data: TrainingData,
    run_dir: Path | None,
    log_seconds: list[float] | None = None,
    prefetch: int = 0,
) -> Iterator[int]:
    """Complete steps: checksums, bounds, positions, labels; with a `run_dir` also logged.

    The CPU time of logging is added to `log_seconds[0]`.
    """
    loader = DataLoader(
        data,
        numbering=Numbering(options.global_batch_size),
        micro_batch_size=options.micro_batch_size,
        prefetch=prefetch,
    )
    log_seconds = log_seconds or [0.0]
    log = None
    if run_dir is not None:
        log = DatapointLog(run_dir, data.describe(), numbering=Numbering(options.global_batch_size))
        log.discard_after(0)
    for batch in loader:
        if log is not None:
            started = time.process_time()
            log.record(batch.rows, time.time())
            if batch.step % max(1, options.commit_rows // options.global_batch_size) == 0:
                log.commit(batch.step)
            log_seconds[0] += time.process_time() - started
        yield batch.n_targets


# ---- packing, log, resume


def _print_packing(options: Options, store: TokenStore, folder: Path) -> None:
    print("| packing | slots wasted | documents cut | rows |\n|---|---|---|---|")
    for strategy in ("best_fit", "concat", "one_per_row"):
        packed = PackedStore.open(store, options.block_size, strategy, folder)
        cut = sum(shard.cut_documents for shard in packed.shards) / store.n_documents
        print(f"| {strategy} | {packed.waste:.3%} | {cut:.2%} | {int(packed.rows_per_shard.sum()):,} |")


def _print_log(run_dir: Path) -> None:
    from pretrain.datapoints.files import part_files, read_row_groups

    folder = run_dir / "datapoints"
    tables = [table for part in part_files(folder) for table in read_row_groups(part, ["document"])]
    segments = sum(len(table["document"].combine_chunks().flatten()) for table in tables)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if segments:
        rows = sum(table.num_rows for table in tables)
        print(
            f"\nLog: {size / segments:.2f} bytes a segment, all files; {segments / rows:.1f} segments a row."
        )


def _print_resume(options: Options, data: TrainingData) -> None:
    """Print the time from a checkpoint's description of the data to the first batch."""
    description = data.describe()
    last = 10**12 // options.block_size // options.global_batch_size
    steps = [1, 1000, last // 2, last]
    milliseconds: dict[int, list[float]] = {step: [] for step in steps}
    for step in steps * 9:
        started = time.perf_counter()
        loader = DataLoader(
            TrainingData.reopen(description),
            numbering=Numbering(options.global_batch_size),
            micro_batch_size=options.micro_batch_size,
            first_step=step,
        )
        next(loader)
        milliseconds[step].append(1000 * (time.perf_counter() - started))
        loader.close()
    print("\n| first batch at sample | ms | more than at 0 |\n|---|---|---|")
    first = statistics.median(milliseconds[1])
    for step, times in milliseconds.items():
        middle = statistics.median(times)
        print(f"| {(step - 1) * options.global_batch_size:,} | {middle:.0f} | {middle - first:+.0f} |")


if __name__ == "__main__":
    run_command(Options, main)
