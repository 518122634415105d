"""Our loader against others: the same tokens, the same batch shape, one process, turn by turn in one run.

    python scripts/bench_loader.py --store STORE

Prints Markdown tables. Speed is useful targets a second, by the clock and by the processor time of the
process (user and system, all threads); other programs disturb the first more. Libraries that are not
installed are named and left out.
"""

import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import progress, run_command
from lit_gpt.option_types import PositiveFloat, PositiveInt
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from pretrain.data.dataloader import DataLoader
from pretrain.data.training_data import DataOptions, TrainingData
from pretrain.datapoints.log import DatapointLog
from scripts.bench.other_loaders import OTHERS, Batches


@dataclass
class Options:
    """Compare the loader with others, and measure packing, log and resume."""

    store: Path
    """Token store to read."""
    block_size: PositiveInt = 2048
    """Predictions in a row."""
    micro_batch_size: PositiveInt = 8
    """Rows of a batch."""
    global_batch_size: PositiveInt = 64
    """Rows of our loader's step."""
    seconds: PositiveFloat = 1.0
    """Length of a turn."""
    rounds: PositiveInt = 9
    """Turns of each loader; the medians are printed."""
    commit_rows: PositiveInt = 1 << 15
    """Rows after which the log is written; a real run writes more at a time, which costs less by the row."""
    work_dir: Path | None = None
    """Folder for the other libraries' copies of the tokens; a temporary one when not given."""


@dataclass
class Contender:
    """A loader, as an endless iterator that yields the useful targets of each batch, and its turns so far."""

    name: str
    targets: Iterator[int]
    by_clock: list[float] = field(default_factory=list)
    by_processor: list[float] = field(default_factory=list)
    processor_seconds: float = 0.0

    def take_turn(self, seconds: float) -> None:
        """Read batches for so long."""
        started, used, total = time.perf_counter(), time.process_time(), 0
        while (elapsed := time.perf_counter() - started) < seconds:
            total += next(self.targets)
        self.by_clock.append(total / elapsed / 1e6)
        used = time.process_time() - used
        self.by_processor.append(total / used / 1e6)
        self.processor_seconds += used


def main(options: Options) -> None:
    """Measure everything and print it."""
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
    contenders = [
        Contender("ours, logged", _ours(options, data, folder / "logged", log_seconds)),
        Contender("ours, logged, by its thread", _ours(options, data, folder / "threaded", prefetch=2)),
        Contender("ours, not logged", _ours(options, data, None)),
    ]
    for name, batches_of in OTHERS.items():
        try:
            batches = batches_of(data.stores[0].store, folder, options.micro_batch_size, options.block_size)
            next(batches)  # writes its copy of the tokens, too
            contenders.append(Contender(name, _count(options, batches)))
        except ImportError as error:
            print(f"left out: {name} ({error})")
    # Each round in another order: who ran before changes a turn by several per cent.
    draw = random.Random(0)
    order = [one for _ in range(1 + options.rounds) for one in draw.sample(contenders, len(contenders))]
    for contender in progress(order, description="turns", unit="turn"):
        contender.take_turn(options.seconds)
    print("| loader | Mtok/s by the clock | ours is | Mtok/s by processor time | ours is |")
    print("|---|---|---|---|---|")
    for contender in contenders:
        cells = [contender.name]
        for turns in ("by_clock", "by_processor"):
            # The first turn warms up.
            ours, theirs = (statistics.median(getattr(one, turns)[1:]) for one in (contenders[0], contender))
            cells += [f"{theirs:.0f}", f"{ours / theirs:.2f} x"]
        print("| " + " | ".join(cells) + " |")
    print(f"\nOf our processor time logging takes {log_seconds[0] / contenders[0].processor_seconds:.1%}.\n")


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
    """Steps with all that belongs to them: checksums, bounds, positions, labels; with a `run_dir` logged.

    The processor time that logging takes is added to `log_seconds[0]`.
    """
    loader = DataLoader(
        data,
        global_batch_size=options.global_batch_size,
        micro_batch_size=options.micro_batch_size,
        prefetch=prefetch,
    )
    log_seconds = log_seconds or [0.0]
    log = None
    if run_dir is not None:
        log = DatapointLog(run_dir, data.describe(), global_batch_size=options.global_batch_size)
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
    pieces = sum(len(table["document"].combine_chunks().flatten()) for table in tables)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if pieces:
        rows = sum(table.num_rows for table in tables)
        print(f"\nLog: {size / pieces:.2f} bytes a piece, all files; {pieces / rows:.1f} pieces a row.")


def _print_resume(options: Options, data: TrainingData) -> None:
    """Time from a checkpoint's description of the data to the first batch."""
    description = data.describe()
    last = 10**12 // options.block_size // options.global_batch_size
    steps = [1, 1000, last // 2, last]
    milliseconds: dict[int, list[float]] = {step: [] for step in steps}
    for step in steps * 9:
        started = time.perf_counter()
        loader = DataLoader(
            TrainingData.reopen(description),
            global_batch_size=options.global_batch_size,
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
