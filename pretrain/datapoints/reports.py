"""The datapoint log for other programs and for people: exports, counts, a plot."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lit_gpt.cli import InputError, progress
from lit_gpt.files import rename
from pretrain.data.rows import by_shard
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import read_row_groups
from pretrain.datapoints.replay import LoggedRows, Replay

SOURCES_SHOWN = 12


def read_pieces(replay: Replay) -> Iterator[tuple[TrainingData, LoggedRows, np.ndarray]]:
    """The log a group of rows at a time, with its data and the row that each piece is in."""
    if not replay.log.parts:
        raise InputError(f"{replay.log.folder} has no part yet: the run's first checkpoint writes it")
    for part in progress(replay.log.parts, description="reading the log", unit="part"):
        for table in read_row_groups(part):
            for segment, rows in replay.log.by_segment(table):
                logged = LoggedRows(rows)
                yield (
                    replay.data(segment),
                    logged,
                    np.repeat(np.arange(rows.num_rows), np.diff(logged.offsets)),
                )


def _ids(data: TrainingData, logged: LoggedRows, row: np.ndarray) -> np.ndarray:
    """The document id of each piece, as objects."""
    ids = np.empty(len(row), dtype=object)
    for store, shard, where in by_shard(logged["store"][row], logged["shard"][row]):
        infos = data.stores[store].store.document_info(shard, logged["document"][where])
        ids[where] = [info.id for info in infos]
    return ids


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
    "applied": pa.bool_(),
}


def export_parquet(replay: Replay, output: Path) -> None:
    """A line a piece, with ids and paths for numbers; what the original's log had carries its names."""

    def write(unfinished: Path) -> None:
        with pq.ParquetWriter(unfinished, pa.schema(_EXPORTED), compression="zstd") as writer:
            for data, logged, row in read_pieces(replay):
                paths = np.array([str(packed.store.path) for packed in data.stores], dtype=object)
                columns = {
                    "time": logged["time"][row],
                    "iter_num": logged["step"][row],
                    "process_rank": logged["rank"][row],
                    "data_id": _ids(data, logged, row),
                    "file_id": logged["shard"][row],
                    "store": paths[logged["store"][row]],
                    "sample": logged["sample"][row],
                    "start": logged["start"],
                    "length": logged["length"],
                    "applied": logged["applied"][row],
                }
                writer.write_table(pa.table(columns, schema=pa.schema(_EXPORTED)))

    _write_whole(output, write)


def export_jsonl(replay: Replay, output: Path) -> None:
    """A line a step and rank, with the original's fields; `data_id` and `file_id` have an entry a piece."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", encoding="utf-8") as file:
            for data, logged, row in read_pieces(replay):
                ids, shard = _ids(data, logged, row), logged["shard"][row]
                keys = np.stack([logged["step"], logged["rank"]])
                bounds = np.flatnonzero(np.any(np.diff(keys, prepend=-1, append=-1), axis=0))
                for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                    pieces = slice(logged.offsets[first], logged.offsets[last])
                    line = {
                        "time": logged["time"][first].astype("int64").item() / 1000,
                        "iter_num": int(logged["step"][first]),
                        "data_id": ids[pieces].tolist(),
                        "file_id": shard[pieces].tolist(),
                        "process_rank": int(logged["rank"][first]),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

    _write_whole(output, write)


def _write_whole(output: Path, write: Callable[[Path], None]) -> None:
    """Write under another name first: what bears the output's name is complete."""
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
    predictions: dict[str, int] = field(default_factory=dict)
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
    for data, logged, row in read_pieces(replay):
        skipped.update(logged["step"][~logged["applied"]].tolist())
        for number, shard, where in by_shard(logged["store"][row], logged["shard"][row]):
            store = data.stores[number].store
            stores[store.fingerprint] = store
            key = (store.fingerprint, shard)
            n_documents = len(store.lengths(shard))
            times = seen.setdefault(key, np.zeros(n_documents, np.int32))
            predictions = fed.setdefault(key, np.zeros(n_documents, np.int64))
            np.add.at(predictions, logged["document"][where], logged["length"][where])
            # A document's first piece stands for it: every pass over the store has it once.
            firsts = where[logged["start"][where] == 0]
            document, step = logged["document"][firsts], logged["step"][row[firsts]]
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
    for (fingerprint, shard), predictions in fed.items():
        sources = stores[fingerprint].sources(shard)
        codes = sources.indices.to_numpy()
        totals = np.bincount(codes, weights=predictions, minlength=len(sources.dictionary))
        for name, total in zip(sources.dictionary.to_pylist(), totals.tolist(), strict=True):
            counts.predictions[name] = counts.predictions.get(name, 0) + int(total)


def print_counts(counts: Counts) -> None:
    """The counts in words."""
    seen = counts.documents - counts.passes.get(0, 0)
    total = max(1, sum(counts.predictions.values()))
    print(f"steps: {len(counts.first_seen) - 1}, of which skipped: {counts.skipped_steps}")
    print(f"documents seen: {seen:,} of {counts.documents:,}; predictions: {total:,}")
    for times, number in counts.passes.items():
        print(f"  {number:,} documents seen {times} time(s)")
    for name, predictions in _largest(counts):
        print(f"  {predictions / total:7.2%}  {name}")


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
    names, predictions = zip(*reversed(_largest(counts)), strict=True)
    shares = np.array(predictions) / sum(counts.predictions.values())
    right.barh([name[-40:] for name in names], 100 * shares)
    right.set(xlabel="share of the predictions fed, %")
    _write_whole(output, lambda unfinished: figure.savefig(unfinished, format=output.suffix[1:] or "png"))
    pyplot.close(figure)


def _largest(counts: Counts) -> list[tuple[str, int]]:
    """The sources by predictions, the small ones together."""
    ranked = sorted(counts.predictions.items(), key=lambda entry: -entry[1])
    rest = sum(predictions for _, predictions in ranked[SOURCES_SHOWN:])
    return ranked[:SOURCES_SHOWN] + ([("all others", rest)] if rest else [])
