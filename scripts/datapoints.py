"""What a run was fed: print a step, find a document, prove the log, export it, count.

    python scripts/datapoints.py step   --run OUT --step N           the text of a step, with document ids
    python scripts/datapoints.py doc    --run OUT --id ID            every step that saw a document
    python scripts/datapoints.py verify --run OUT                    rebuild every row and compare
    python scripts/datapoints.py export --run OUT --output X.parquet a line a segment, for other programs
    python scripts/datapoints.py export --run OUT --output X.jsonl   a line a step and rank
    python scripts/datapoints.py stats  --run OUT --output X.png     documents seen, repeats, sources
    python scripts/datapoints.py stages --run OUT                    what each stage was fed from each store
    python scripts/datapoints.py losses --run OUT                    what the model found hard, and when

The exit code is 1 where the log and the data disagree.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from lit_gpt.cli import Command, InputError, progress, run_commands
from lit_gpt.option_types import PositiveInt
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.datapoints.losses import Steps
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.search import Occurrence, find_document, occurrences_by_log, occurrences_by_order
from pretrain.datapoints.steps import read_step, text_of_row


@dataclass(kw_only=True)
class RunOptions:
    """What every command takes."""

    run: Path
    """The run's out_dir."""
    train_data_dir: list[str] | None = None
    """The token stores of the run, in any order, if they are no longer where it read them."""
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
    step = read_step(replay, options.step)
    if not step.is_logged:
        raise InputError(
            f"--step {options.step} is not in the log, which ends at step {replay.log.last_step}"
        )
    tokenizer = Tokenizer.load(options.tokenizer_path or step.rows[0].store.path / "tokenizer")
    stage = f"stage {step.period.name}, " if step.period.name else ""
    for row in step.rows:
        skipped = ", step skipped" if row.skipped else ""
        title = f"{stage}step {options.step}, sample {row.sample}, rank {row.rank}{skipped}"
        if not row.is_proved:
            _disagree(f"{title}: the tokens in {row.store.path} are not those that were fed")
        print(f"=== {title}: row {row.row} of shard {row.shard} in {row.store.path}")
        for line in text_of_row(row, tokenizer.decode):
            print(line)


# ---- doc


@dataclass(kw_only=True)
class DocOptions(RunOptions):
    """Print every step that saw a document, by the order's inverse and by the log, which must agree."""

    id: str
    """The document's id."""


def print_document(options: DocOptions) -> None:
    """The command `doc`."""
    replay = options.open()
    documents = find_document(replay, options.id)
    if not documents:
        raise InputError(f"--id {options.id!r} is in no store of the run")
    stores = {
        (found.data.stores[found.store].store.path, found.shard, found.document): found for found in documents
    }
    for (path, shard, document), found in stores.items():
        [info] = found.data.stores[found.store].store.document_info(shard, np.array([document]))
        print(
            f"document {document} of shard {shard} in {path}: {info.n_tokens} tokens, "
            f"from {info.source}:{info.source_line}"
        )
    by_order, by_log = (of(replay.log, documents) for of in (occurrences_by_order, occurrences_by_log))
    for occurrence in sorted({*by_order, *by_log}):
        doubt = "" if by_order == by_log else _doubt(occurrence, by_order, by_log)
        step, sample, start, length = occurrence
        print(f"step {step}, sample {sample}: targets {start} to {start + length - 1}{doubt}")
    if by_order != by_log:
        _disagree("the log and the order disagree")
    print(f"{len({occurrence.step for occurrence in by_log})} step(s), by the order and by the log")
    for gap in replay.log.gaps:
        print(f"{gap}; documents seen there are not listed")


def _doubt(occurrence: Occurrence, by_order: list[Occurrence], by_log: list[Occurrence]) -> str:
    times = by_order.count(occurrence), by_log.count(occurrence)
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
    for period in replay.log.periods:
        replay.data(period)  # missing stores are named before the bar
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
        f"{report.steps} steps, {report.rows} rows, {report.segments} segments: all as the store gives them"
    )


# ---- export, stats and stages


@dataclass(kw_only=True)
class ExportOptions(RunOptions):
    """Write the log with document ids as .parquet or .jsonl, for programs that know nothing of stores."""

    output: Path
    """File to write. NAME.parquet: a line a segment. NAME.jsonl: a line a step and rank, with time, iter_num,
    data_id, file_id, process_rank."""
    format: Literal["parquet", "jsonl"] | None = None
    """Require this suffix of --output."""


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


@dataclass(kw_only=True)
class StagesOptions(RunOptions):
    """Print what each stage was fed from each store, according to the log.

    `epochs` is the number of rows fed over the number of rows that the store is packed in: in this stage, and
    `in total` up to its end. `seen before` is the share of the documents fed that an earlier stage was fed
    too, wholly or in part.
    """


def stages(options: StagesOptions) -> None:
    """The command `stages`."""
    from pretrain.datapoints.stage_table import count_stages, table_lines

    replay = options.open()
    for line in table_lines(count_stages(replay)):
        print(line)
    for gap in replay.log.gaps:
        print(f"{gap}; what is not in the log is not counted")


# ---- losses


@dataclass(kw_only=True)
class LossesOptions(RunOptions):
    """Print the mean loss of groups of segments over training, or of the documents that stand out.

    The losses are those of the forward passes in which the model was fed the segments: a document that
    was fed early has a high one whatever it says, so compare within --steps. A mean is over targets.
    """

    by: Literal["source", "store", "length", "step", "document", "repeats"] = "source"
    """source, store or length (of segments, in tokens, masked ones too): how the loss of each changed.
    step, document: those with the highest loss. repeats: how far the loss fell of documents that were seen
    again."""
    steps: str | None = None
    """A-B: these steps only, both included."""
    top: PositiveInt = 20
    """Lines to print, at most."""
    lowest: bool = False
    """Of steps, documents and repeats print those with the lowest loss, or fall."""


def losses(options: LossesOptions) -> None:
    """The command `losses`."""
    from pretrain.datapoints.loss_tables import loss_table

    replay = options.open()
    steps = Steps.parse(options.steps, replay.log.last_step)
    for line in loss_table(replay, steps, options.by, options.top, options.lowest):
        print(line)


COMMANDS: dict[str, Command] = {
    "step": (StepOptions, print_step),
    "doc": (DocOptions, print_document),
    "verify": (VerifyOptions, verify),
    "export": (ExportOptions, export),
    "stats": (StatsOptions, stats),
    "stages": (StagesOptions, stages),
    "losses": (LossesOptions, losses),
}


def _disagree(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
