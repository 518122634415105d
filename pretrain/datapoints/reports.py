"""The datapoint log for other programs and for people: exports, counts, a plot."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lit_gpt.cli import InputError
from lit_gpt.files import rename
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import LoggedSegments, scan

SOURCES_SHOWN = 12


def read_segments(replay: Replay) -> Iterator[LoggedSegments]:
    """The log, a group of rows at a time."""
    if not replay.log.parts:
        raise InputError(f"{replay.log.folder} has no part yet: the run's first checkpoint writes it")
    return scan(replay, bar=True)


def aligned(table: Sequence[Sequence[str]], left: int = 0) -> Iterator[str]:
    """The lines of a table: the first `left` columns and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for *cells, last in table:
        names = map(str.ljust, cells[:left], widths)
        yield "  ".join([*names, *map(str.rjust, cells[left:], widths[left:]), last])


# ---- export

_EXPORTED = {
    "time": pa.timestamp("ms", tz="UTC"),
    "iter_num": pa.int64(),
    "process_rank": pa.int32(),
    "data_id": pa.string(),
    "file_id": pa.int32(),
    "store": pa.string(),
    "sample": pa.int64(),
    "start": pa.int32(),
    "length": pa.int32(),
    "loss": pa.float32(),
    "applied": pa.bool_(),
}


def export_parquet(replay: Replay, output: Path) -> None:
    """A line a segment, with ids and paths for numbers; the fields of the original's log have its names."""

    def write(unfinished: Path) -> None:
        with pq.ParquetWriter(unfinished, pa.schema(_EXPORTED), compression="zstd") as writer:
            for logged in read_segments(replay):
                paths = np.array([str(packed.store.path) for packed in logged.data.stores], dtype=object)
                columns = {
                    "time": logged["time"],
                    "iter_num": logged["step"],
                    "process_rank": logged["rank"],
                    "data_id": logged.ids(),
                    "file_id": logged["shard"],
                    "store": paths[logged["store"]],
                    "sample": logged["sample"],
                    "start": logged.rows.start,
                    "length": logged.rows.length,
                    "loss": logged.loss,
                    "applied": logged["applied"],
                }
                writer.write_table(pa.table(columns, schema=pa.schema(_EXPORTED)))

    _write_complete(output, write)


def export_jsonl(replay: Replay, output: Path) -> None:
    """A line a step and rank, with the original's fields; `data_id` and `file_id` have an entry a segment."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", encoding="utf-8") as file:
            for logged in read_segments(replay):
                ids, shard, milliseconds = logged.ids(), logged["shard"], logged["time"].astype("int64")
                step, rank = logged["step"], logged["rank"]
                bounds = np.flatnonzero(np.any(np.diff([step, rank], prepend=-1, append=-1), axis=0))
                for first, last in itertools.pairwise(bounds.tolist()):
                    line = {
                        "time": int(milliseconds[first]) / 1000,
                        "iter_num": int(step[first]),
                        "data_id": ids[first:last].tolist(),
                        "file_id": shard[first:last].tolist(),
                        "process_rank": int(rank[first]),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

    _write_complete(output, write)


def _write_complete(output: Path, write: Callable[[Path], None]) -> None:
    """Write under another name first, so that a file of the output's name is complete."""
    unfinished = output.with_name(output.name + ".unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        rename(unfinished, output)
    except OSError as error:
        raise InputError(f"--output {output}: cannot write there ({error.strerror})") from error
    print(f"wrote {output}: {output.stat().st_size:,} bytes")


# ---- stats


@dataclass
class Counts:
    """What the steps of a run were fed."""

    documents: int
    """In the stores."""
    first_seen: np.ndarray
    """(last step + 1,) documents that a step was the first to see."""
    seen_again: np.ndarray
    """(last step + 1,) documents that a step saw although one before had."""
    passes: dict[int, int] = field(default_factory=dict)
    """Documents by how often they were seen."""
    targets: dict[str, int] = field(default_factory=dict)
    """Fed, by source."""
    skipped_steps: int = 0


def count_documents(replay: Replay) -> Counts:
    """Go through the log once. Memory: 12 bytes a document of the shards seen."""
    n_steps = replay.log.last_step + 1
    counts = Counts(0, np.zeros(n_steps, np.int64), np.zeros(n_steps, np.int64))
    seen: dict[tuple[Any, int], np.ndarray] = {}
    fed: dict[tuple[Any, int], np.ndarray] = {}
    stores: dict[str, Any] = {}
    skipped: set[int] = set()
    for logged in read_segments(replay):
        rows, step_of_segment = logged.rows, logged["step"]
        skipped.update(np.unique(step_of_segment[~logged["applied"]]).tolist())
        for number, shard, where in logged.by_shard():
            store = logged.data.stores[number].store
            stores[store.fingerprint] = store
            key = (store.fingerprint, shard)
            n_documents = len(store.lengths(shard))
            times = seen.setdefault(key, np.zeros(n_documents, np.int32))
            targets = fed.setdefault(key, np.zeros(n_documents, np.int64))
            np.add.at(targets, rows.document[where], logged.targets[where])
            # A document's first segment stands for it: every pass over the store has it once.
            firsts = where[rows.start[where] == 0]
            document, step = rows.document[firsts], step_of_segment[firsts]
            _, position = np.unique(document, return_index=True)
            new = np.zeros(len(document), bool)
            new[position] = times[document[position]] == 0
            np.add.at(counts.first_seen, step[new], 1)
            np.add.at(counts.seen_again, step[~new], 1)
            np.add.at(times, document, 1)
    counts.skipped_steps = len(skipped)
    counts.documents = sum(store.n_documents for store in stores.values())
    _sum_up(counts, stores, seen, fed)
    return counts


def _sum_up(
    counts: Counts, stores: dict[str, Any], seen: dict[Any, np.ndarray], fed: dict[Any, np.ndarray]
) -> None:
    passes = np.bincount(np.concatenate(list(seen.values())))
    passes[0] = counts.documents - passes[1:].sum()
    counts.passes = {times: int(number) for times, number in enumerate(passes) if number}
    for (fingerprint, shard), targets in fed.items():
        sources = stores[fingerprint].sources(shard)
        codes = sources.indices.to_numpy()
        totals = np.bincount(codes, weights=targets, minlength=len(sources.dictionary))
        for name, total in zip(sources.dictionary.to_pylist(), totals.tolist(), strict=True):
            counts.targets[name] = counts.targets.get(name, 0) + int(total)


def print_counts(counts: Counts) -> None:
    """The counts in words."""
    seen = counts.documents - counts.passes.get(0, 0)
    total = max(1, sum(counts.targets.values()))
    print(f"steps: {len(counts.first_seen) - 1}, of which skipped: {counts.skipped_steps}")
    print(f"documents seen: {seen:,} of {counts.documents:,}; targets: {total:,}")
    for times, number in counts.passes.items():
        print(f"  {number:,} documents seen {times} time(s)")
    for name, targets in _largest(counts):
        print(f"  {targets / total:7.2%}  {name}")


def plot_counts(counts: Counts, output: Path) -> None:
    """Documents seen and repeated by step, and the share of each source."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    steps = np.arange(len(counts.first_seen))
    left.stackplot(
        steps,
        np.cumsum(counts.first_seen),
        np.cumsum(counts.seen_again),
        labels=["seen for the first time", "seen again"],
    )
    left.axhline(counts.documents, color="black", linewidth=0.8, linestyle="--", label="in the stores")
    left.set(xlabel="step", ylabel="documents fed, cumulated", xlim=(0, max(1, steps[-1])))
    left.legend(loc="upper left")
    names, targets = zip(*reversed(_largest(counts)), strict=True)
    shares = np.array(targets) / sum(counts.targets.values())
    right.barh([name[-40:] for name in names], 100 * shares)
    right.set(xlabel="share of the targets fed, %")
    _write_complete(output, lambda unfinished: figure.savefig(unfinished, format=output.suffix[1:] or "png"))
    pyplot.close(figure)


def _largest(counts: Counts) -> list[tuple[str, int]]:
    """The sources by targets, the small ones together."""
    ranked = sorted(counts.targets.items(), key=lambda entry: -entry[1])
    rest = sum(targets for _, targets in ranked[SOURCES_SHOWN:])
    return ranked[:SOURCES_SHOWN] + ([("all others", rest)] if rest else [])
