"""What a run was fed: print a step, find a document, prove the log, export it, count.

    python scripts/datapoints.py step   --run OUT --step N       the text of a step, with document ids
    python scripts/datapoints.py doc    --run OUT --id ID        every step that saw a document
    python scripts/datapoints.py verify --run OUT                rebuild every row and compare
    python scripts/datapoints.py export --run OUT --output FILE  for other programs
    python scripts/datapoints.py stats  --run OUT --output PNG   documents seen, repeats, sources

The exit code is 1 where the log and the data disagree.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from lit_gpt.cli import Command, InputError, progress, run_commands
from lit_gpt.option_types import PositiveInt
from lit_gpt.rows.packed_store import row_checksum
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.replay import LoggedRows, Replay
from pretrain.datapoints.search import Sighting, find_document, sightings_by_log, sightings_by_order


@dataclass(kw_only=True)
class RunOptions:
    """What every command takes."""

    run: Path
    """The run's out_dir."""
    train_data_dir: list[str] | None = None
    """The token stores, in the run's order, if they are no longer where the run read them."""
    packing_dir: str | None = None
    """Folder of packings, if they are no longer there either."""

    def open(self) -> Replay:
        """The run's log with its data."""
        return Replay(self.run, self.train_data_dir, self.packing_dir)


# ---- step


@dataclass(kw_only=True)
class StepOptions(RunOptions):
    """Print the text that a step was fed, with the ids of its documents."""

    step: PositiveInt
    """Optimizer step, counted from 1."""
    tokenizer_path: Path | None = None
    """Folder of the tokenizer; the store's own when not given."""


def print_step(options: StepOptions) -> None:
    """The command `step`."""
    replay = options.open()
    table = replay.log.step_rows(options.step)
    if table.num_rows == 0:
        raise InputError(
            f"--step {options.step} is not in the log, which ends at step {replay.log.last_step}"
        )
    [(segment, table)] = replay.log.by_segment(table)
    data, logged = replay.data(segment), LoggedRows(table)
    tokenizer = Tokenizer.load(options.tokenizer_path or data.stores[0].store.path / "tokenizer")
    for row in range(table.num_rows):
        _print_row(data, logged, row, tokenizer)


def _print_row(data: TrainingData, logged: LoggedRows, row: int, tokenizer: Tokenizer) -> None:
    store = data.stores[logged["store"][row]].store
    shard = int(logged["shard"][row])
    pieces = slice(logged.offsets[row], logged.offsets[row + 1])
    documents, starts, lengths = (logged[name][pieces] for name in ("document", "start", "length"))
    tokens = [
        store.document_tokens(shard, document)[start : start + length + 1]
        for document, start, length in zip(documents, starts, lengths, strict=True)
    ]
    skipped = "" if logged["applied"][row] else ", step skipped"
    title = f"step {logged['step'][row]}, sample {logged['sample'][row]}, rank {logged['rank'][row]}{skipped}"
    if row_checksum(np.concatenate(tokens)) != logged["checksum"][row]:
        _disagree(f"{title}: the tokens in {store.path} are not those that were fed")
    print(f"=== {title}: row {logged['row'][row]} of shard {shard} in {store.path}")
    for info, start, length, read in zip(
        store.document_info(shard, documents), starts, lengths, tokens, strict=True
    ):
        name = json.dumps(info.id, ensure_ascii=False)
        print(f"--- document {name}, predictions {start} to {start + length - 1} of {info.n_tokens - 1}")
        print(tokenizer.decode(read))


# ---- doc


@dataclass(kw_only=True)
class DocOptions(RunOptions):
    """Print every step that saw a document, by the order's inverse and by the log, which must agree."""

    id: str
    """The document's id."""


def print_document(options: DocOptions) -> None:
    """The command `doc`."""
    replay = options.open()
    found = {
        (data.stores[store].store.path, shard, document): data.stores[store].store
        for data in map(replay.data, replay.log.segments)
        for store, shard, document in find_document(data, options.id)
    }
    if not found:
        raise InputError(f"--id {options.id!r} is in no store of the run")
    for (path, shard, document), token_store in found.items():
        info = token_store.document_info(shard, np.array([document]))[0]
        print(
            f"document {document} of shard {shard} in {path}: {info.n_tokens} tokens, "
            f"from {info.source}:{info.source_line}"
        )
    by_order, by_log = sightings_by_order(replay, options.id), sightings_by_log(replay, options.id)
    for sighting in sorted({*by_order, *by_log}):
        doubt = "" if by_order == by_log else _doubt(sighting, by_order, by_log)
        last = sighting.start + sighting.length - 1
        print(
            f"step {sighting.step}, sample {sighting.sample}: predictions {sighting.start} to {last}{doubt}"
        )
    if by_order != by_log:
        _disagree("the log and the order disagree")
    print(f"{len({sighting.step for sighting in by_log})} step(s), by the order and by the log")
    for gap in replay.log.gaps:
        print(f"{gap}; documents seen there are not listed")


def _doubt(sighting: Sighting, by_order: list[Sighting], by_log: list[Sighting]) -> str:
    times = by_order.count(sighting), by_log.count(sighting)
    return "" if times[0] == times[1] else f"  <- {times[0]} time(s) by the order, {times[1]} by the log"


# ---- verify


@dataclass(kw_only=True)
class VerifyOptions(RunOptions):
    """Rebuild every row by the order's function and compare it with all that is logged of it."""


def verify(options: VerifyOptions) -> None:
    """The command `verify`."""
    replay = options.open()
    if not replay.log.parts:
        raise InputError(f"{options.run} has logged no step yet: its first checkpoint writes the first part")
    for segment in replay.log.segments:
        replay.data(segment)  # what is missing is said before the bar
    bar = progress(description="verifying", unit="row")
    for report in replay.verify():
        bar.update(report.rows - bar.n)
    bar.close()
    for gap in replay.log.gaps:
        print(gap)
    for message in report.messages:
        print(message)
    if report.differences:
        _disagree(f"{report.differences} difference(s) in {report.rows} rows")
    print(
        f"{report.steps} steps, {report.rows} rows, {report.pieces} pieces: every one as the store gives it"
    )


# ---- export and stats


@dataclass(kw_only=True)
class ExportOptions(RunOptions):
    """Write the log with document ids, for programs that know nothing of stores."""

    output: Path
    """File to write, .parquet or .jsonl."""
    format: Literal["parquet", "jsonl"] | None = None
    """parquet: a line a piece. jsonl: a line a step and rank, with time, iter_num, data_id, file_id,
    process_rank (default: as the suffix of --output says)."""


def export(options: ExportOptions) -> None:
    """The command `export`."""
    from pretrain.datapoints.reports import export_jsonl, export_parquet

    writers = {"parquet": export_parquet, "jsonl": export_jsonl}
    suffix = options.output.suffix.removeprefix(".")
    if suffix not in writers or options.format not in (None, suffix):
        wanted = [options.format] if options.format else writers
        raise InputError(f"--output {options.output}: give a name that ends in .{' or .'.join(wanted)}")
    writers[suffix](options.open(), options.output)


@dataclass(kw_only=True)
class StatsOptions(RunOptions):
    """Count the documents seen, their repeats and the tokens of each source, and plot them."""

    output: Path | None = None
    """Picture to write (.png, .pdf, .svg)."""


def stats(options: StatsOptions) -> None:
    """The command `stats`."""
    from pretrain.datapoints.reports import count_documents, plot_counts, print_counts

    counts = count_documents(options.open())
    print_counts(counts)
    if options.output is not None:
        plot_counts(counts, options.output)


COMMANDS: dict[str, Command] = {
    "step": (StepOptions, print_step),
    "doc": (DocOptions, print_document),
    "verify": (VerifyOptions, verify),
    "export": (ExportOptions, export),
    "stats": (StatsOptions, stats),
}


def _disagree(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
