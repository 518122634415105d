"""What a run read: the segments of a step, and where a document was seen and will be."""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lit_gpt.errors import InputError
from lit_gpt.store.masking import is_target
from lit_gpt.store.shard_files import DocumentInfo
from lit_gpt.store.token_store import TokenStore
from pretrain.datapoints.files import part_files
from pretrain.datapoints.periods import DataPeriod
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.search import Found, find_document, occurrences_by_order
from pretrain.datapoints.steps import FedStep, read_step
from scripts.explorer.losses import Losses, names_of_stores, read_losses

ORDERS = {"high": "highest loss first", "low": "lowest loss first", "long": "longest first", "fed": "as fed"}
_LAST_STEP = 10**12
_STEPS_KEPT = 4
_VIEWS_KEPT = 3  # of a long run each may take hundreds of MB
MAX_SEEN = 100
"""Times a document was seen, the latest, whose losses are looked up; and times to come that are shown."""


class Segment(NamedTuple):
    """A line of a step's table; `row` and `segment` say where in the step it is."""

    row: int
    segment: int
    sample: int
    store: TokenStore
    shard: int
    document: int
    start: int
    length: int
    loss: float | None
    tokens: np.ndarray
    """Raw, `length` + 1 of them."""


class Seen(NamedTuple):
    """A segment of a document in a step. `loss` is None where it is not logged or the step is to come."""

    step: int
    sample: int
    start: int
    length: int
    loss: float | None


class Document(NamedTuple):
    """A document in one of the stores, with the steps of this run that saw it or will see it.

    Steps after `last_logged` are not in the log yet.
    """

    store: TokenStore
    shard: int
    number: int
    info: DocumentInfo
    seen: list[Seen]
    last_logged: int


class Reading:
    """A run's log and data, opened when first asked and again when the run has logged more.

    Args:
        train_data_dir: where the run's stores are now, if they have moved.
        packing_dir: where their packings are now.
    """

    def __init__(
        self, folder: Path, train_data_dir: Sequence[str] | None = None, packing_dir: str | None = None
    ) -> None:
        self.folder = folder
        self._moved, self._packing_dir = train_data_dir, packing_dir
        self._lock = threading.RLock()
        self._replay: Replay | None = None
        self._version: Any = None
        self._step = functools.lru_cache(maxsize=_STEPS_KEPT)(self._read_step)
        self._losses = functools.lru_cache(maxsize=_VIEWS_KEPT)(self._read_losses)

    def replay(self) -> Replay:
        """The log as it is now, with its data.

        Raises:
            InputError: there is no log, or a store is not where it was; says what to do.
        """
        with self._lock:
            version = _version(self.folder / "datapoints")
            if self._replay is None or version != self._version:
                replay = Replay(self.folder, self._moved, self._packing_dir)
                try:
                    for period in replay.log.periods:
                        replay.data(period)
                except InputError as error:
                    hint = "start explore.py with --train_data_dir and where all stores of the run are now"
                    raise InputError(f"{error}. If it has moved: {hint}") from error
                self._replay, self._version = replay, version
                self._step.cache_clear()
                self._losses.cache_clear()
            return self._replay

    def step(self, step: int) -> FedStep:
        """What a step was fed, or will be. Raises InputError as `replay`, and where there is no such step."""
        with self._lock:
            self.replay()
            if not 1 <= step <= _LAST_STEP:
                raise InputError(f"steps are counted from 1, to {_LAST_STEP:,} at most")
            return self._step(step)

    def _read_step(self, step: int) -> FedStep:
        return read_step(self.replay(), step)

    def losses(self, first: int, last: int) -> Losses:
        """The losses that are logged of the segments in some steps. Raises InputError as `replay`."""
        with self._lock:
            logged = self.replay().log.last_step  # a run that goes on is read again when it has logged more
            return self._losses(first, min(last, logged))

    def _read_losses(self, first: int, last: int) -> Losses:
        return read_losses(self.replay(), first, last)

    def store_names(self) -> dict[Path, str]:
        """By path short names of all stores of the run. Raises InputError as `replay`."""
        with self._lock:
            return names_of_stores(self.replay())

    def documents(self, document_id: str) -> list[Document]:
        """All documents with an id, in whatever store and stage; none where there is none."""
        with self._lock:
            replay = self.replay()
            last = self.planned_step()
            found: dict[tuple[str, int, int], list[Found]] = {}
            for one in find_document(replay, document_id):
                store = one.data.stores[one.store].store
                if one.first_step == replay.log.periods[-1].first_step:
                    one = one._replace(last_step=max(one.last_step, last))
                found.setdefault((str(store.path), one.shard, one.document), []).append(one)
            return [self._document(replay, places) for places in found.values()]

    def planned_step(self) -> int:
        """The last step of the run, or of the stage it is in, as far as config.yaml says."""
        replay = self.replay()
        try:
            config = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
            planned = _last_step(config, replay.log.periods[-1])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            planned = 0  # a copy of a run may lack it
        return max(planned, replay.log.last_step)

    def _document(self, replay: Replay, places: list[Found]) -> Document:
        one = places[0]
        store = one.data.stores[one.store].store
        [info] = store.document_info(one.shard, np.array([one.document]))
        occurrences = occurrences_by_order(replay.log, places)
        losses: dict[tuple[int, int], float | None] = {}
        logged = {occurrence.step for occurrence in occurrences if occurrence.step <= replay.log.last_step}
        for step in sorted(logged)[-MAX_SEEN:]:
            for segment in segments_of(self.step(step)):
                if segment.document == one.document and segment.shard == one.shard:
                    losses[segment.sample, segment.start] = segment.loss
        seen = [Seen(*at, losses.get((at.sample, at.start))) for at in occurrences]
        return Document(store, one.shard, one.document, info, seen, replay.log.last_step)


def _version(log: Path) -> list[tuple[str, int]]:
    """Tells whether a log has changed. A run that is resumed moves parts away, maybe right now."""
    version = []
    for file in sorted([*part_files(log), *log.glob("data.json")]):
        try:
            version.append((file.name, file.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return version


def _last_step(config: dict[str, Any], period: DataPeriod) -> int:
    for stage in config.get("stages") or []:
        if stage["name"] == period.name:
            return period.steps_before + int(stage["steps"])
    return int(config.get("max_steps") or 0)


def segments_of(step: FedStep) -> list[Segment]:
    """All segments of a step, as fed."""
    return [
        Segment(
            number,
            place,
            row.sample,
            row.store,
            row.shard,
            int(row.segments.document[place]),
            int(row.segments.start[place]),
            int(row.segments.length[place]),
            None if row.losses is None else float(row.losses[place]),
            tokens,
        )
        for number, row in enumerate(step.rows)
        for place, tokens in enumerate(row.tokens)
    ]


def count_targets(segment: Segment) -> int:
    """How many of its labels count: all in a plain store."""
    return int(np.count_nonzero(is_target(segment.tokens[1:])))


def in_order(segments: list[Segment], order: str) -> list[Segment]:
    """Sort by one of ORDERS; where no losses are logged, the longest come first in place of them."""
    no_losses = all(segment.loss is None for segment in segments)
    if order == "long" or (order in ("high", "low") and no_losses):
        return sorted(segments, key=lambda segment: -segment.length)
    if order == "fed":
        return segments
    sign = -1 if order == "high" else 1
    return sorted(
        segments, key=lambda one: (one.loss is None or one.loss != one.loss, sign * (one.loss or 0))
    )


def infos_of(segments: Sequence[Segment]) -> list[DocumentInfo]:
    """Ids and origins of the documents, looked up shard by shard."""
    infos: dict[int, DocumentInfo] = {}
    by_shard: dict[tuple[str, int], list[int]] = {}
    for at, segment in enumerate(segments):
        by_shard.setdefault((str(segment.store.path), segment.shard), []).append(at)
    for places in by_shard.values():
        store, shard = segments[places[0]].store, segments[places[0]].shard
        found = store.document_info(shard, np.array([segments[at].document for at in places]))
        infos |= dict(zip(places, found, strict=True))
    return [infos[at] for at in range(len(segments))]
