"""Filter documents: options and stages of clean.py, which prepare.py runs too, and rules."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datatrove.pipeline.base import PipelineStep

from data_prep.filters.language import LanguageIdentifier
from data_prep.filters.limits import FilterOptions, Limits
from data_prep.filters.measures import MEASURES, NGRAM_MEASURES, Measure, Texts, signal, signal_of
from data_prep.stages.corpus import Call, CorpusDocument, open_corpus
from data_prep.stages.input_files import CorpusOptions, describe_inputs
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import WITHOUT_SIGNAL, with_summary
from data_prep.text.normalize import Normalize, NormalizeOptions
from lit_gpt.hashed_files import sha256_of
from lit_gpt.store.tokenizer import Tokenizer

Item = TypeVar("Item")
BATCH_CHARACTERS = 1 << 18
"""Texts measured together: few calls of numpy, and arrays that a core's cache holds."""


@dataclass(kw_only=True)
class Options(CorpusOptions, NormalizeOptions, FilterOptions, ExecutionOptions):
    """Repair the text of documents, and filter them; write those dropped to a folder per reason."""


def plan(files: list[Path], options: Options, folder: Path, name: str = "clean") -> list[Stage]:
    """Stages that filter `files`, which need not exist yet, into `folder`.

    Args:
        name: of the stage, and in prepare.py of the folder.

    Raises:
        InputError: the folder was begun with other settings, or there is no such tokenizer.
    """
    limits = options.limits()
    tokenizer = Tokenizer.load(options.tokenizer).fingerprint if options.tokenizer else None
    identifier = _identifier(limits, options)
    kinds = options.kinds()
    settings = dict.fromkeys(kinds, True) | {
        "limits": dataclasses.asdict(limits),
        "tokenizer": tokenizer,
        "language_model": identifier and sha256_of(identifier.model),
    }
    read, write = open_corpus(files, options, folder, settings)
    choose = partial(_filter, limits, options)
    describe = Call("inputs", partial(describe_inputs, files, folder))
    normalize = [Normalize(kinds, folder)] if kinds else []
    signals = [CountWithoutSignals(limits.signals)] if limits.signals else []
    steps: list[Callable[..., Any]] = [read, *normalize, *signals, choose, write, describe]
    stage = Stage(name, steps, options.n_tasks(len(files)), folder)
    return with_summary([stage], "Filtered documents")


def _identifier(limits: Limits, options: Options) -> LanguageIdentifier | None:
    """None if no limit needs it."""
    if not (limits.min_language_score or limits.min_language_frac):
        return None
    return LanguageIdentifier(limits.language, options.language_model)


def _filter(
    limits: Limits, options: Options, data: Iterable[CorpusDocument], rank: int, world_size: int
) -> Iterator[CorpusDocument]:
    """Mark the documents to drop with the reason. Count tokens if there is a tokenizer."""
    filters = Filters(limits, _identifier(limits, options))
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else None
    for documents in batches(data, lambda document: len(document.text)):
        texts = [document.text for document in documents]
        if tokenizer is not None:
            for document, tokens in zip(documents, tokenizer.encode(texts), strict=True):
                document.tokens = len(tokens) - 2  # without BOS and EOS
        reasons = filters.reasons_against(
            texts,
            [document.metadata for document in documents],
            [document.tokens for document in documents],
        )
        for document, reason in zip(documents, reasons, strict=True):
            document.excluded = reason
            yield document


class CountWithoutSignals(PipelineStep):
    """Counts the documents without a signal that has a limit: the limit does not judge them."""

    type, name = "FILTER", "signals"

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        without = dict.fromkeys(self.names, 0)
        for document in data:
            for name in self.names:
                without[name] += signal_of(document.metadata, name) is None
            yield document
        for name, count in without.items():
            self.stat_update(f"{WITHOUT_SIGNAL}/{name}", value=count)


def batches(data: Iterable[Item], n_characters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Batches of at most BATCH_CHARACTERS; what is longer makes a batch of its own."""
    batch: list[Item] = []
    size = 0
    for item in data:
        if batch and size + n_characters(item) > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += n_characters(item)
    if batch:
        yield batch


@dataclass(frozen=True)
class Rule:
    """A measure and its limits."""

    name: str
    measure: Measure
    low: float | None
    high: float | None

    def broken_by(self, values: np.ndarray) -> np.ndarray:
        """bool: whether texts with these values break the rule; NaN does not."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return (values < low) | (values > high)

    def reason(self, value: float) -> dict[str, Any]:
        """`reason`, `value` and `limit` of a text that breaks it."""
        if self.low is not None and value < self.low:
            return {"reason": f"min_{self.name}", "value": round(value, 4), "limit": self.low}
        return {"reason": f"max_{self.name}", "value": round(value, 4), "limit": self.high}


class Filters:
    """The rules that have a limit, cheap ones first.

    Args:
        identifier: None leaves out what it measures.
    """

    def __init__(self, limits: Limits, identifier: LanguageIdentifier | None = None) -> None:
        self.limits = limits

        def rules_of(measures: dict[str, Measure]) -> list[Rule]:
            bounds = {
                name: [getattr(limits, f"{kind}_{name}", None) for kind in ("min", "max")]
                for name in measures
            }
            return [Rule(name, measure, *bounds[name]) for name, measure in measures.items()]

        rules = rules_of(MEASURES)
        rules += [
            Rule(f"signal_{name}", partial(signal, name=name), low, high)
            for name, (low, high) in limits.signals.items()
        ]
        rules += [
            Rule(f"{name}_{n}", partial(measure, n=n, limit=high), None, high)
            for name, measure in NGRAM_MEASURES.items()
            for n, high in sorted(getattr(limits, f"max_{name}").items())
        ]
        rules += rules_of(identifier.measures(limits.min_language_frac)) if identifier else []
        self.rules = [rule for rule in rules if (rule.low, rule.high) != (None, None)]

    def reasons_against(
        self, texts: Sequence[str], metadata: Sequence[Mapping[str, Any]], tokens: Sequence[int]
    ) -> list[dict[str, Any] | None]:
        """Why to drop each text: the first rule it breaks. None if it is kept.

        Args:
            tokens: their numbers, without BOS and EOS; 0 if not counted.
        """
        reasons: list[dict[str, Any] | None] = [
            {"reason": "empty"}
            if not text or text.isspace()
            else {"reason": "source_duplicate"}
            if fields.get("source_duplicate")
            else None
            for text, fields in zip(texts, metadata, strict=True)
        ]
        left = [number for number, reason in enumerate(reasons) if reason is None]
        measured = Texts(
            [texts[number] for number in left],
            [metadata[number] for number in left],
            [tokens[number] for number in left],
            self.limits.stop_words,
            bool(self.limits.refrains),
        )
        for rule in self.rules:
            if not measured.open.any():
                break
            values = np.array(rule.measure(measured), dtype=object)  # numbers of Python, or None
            broken = rule.broken_by(values.astype(np.float64)) & measured.open
            for place in np.flatnonzero(broken).tolist():
                reasons[left[place]] = rule.reason(values[place])
            measured.open &= ~broken
        return reasons
