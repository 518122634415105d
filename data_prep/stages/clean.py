"""Filter documents: options and stages of clean.py, which prepare.py runs too; measures of a text, and rules.

Most measures are those of Gopher (arXiv:2112.11446) and FineWeb2 (arXiv:2506.20920). A regular expression
finds words; FineWeb2 uses spaCy, which takes thirty times as long. docs/data_prep.md says how far the
decisions agree.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

from data_prep.stages.corpus import Call, CorpusDocument, CorpusOptions, open_corpus, task_files
from data_prep.stages.limits import FilterOptions, Limits
from data_prep.stages.pipeline import ExecutionOptions, Stage, write_json
from data_prep.stages.summary import with_summary
from lit_gpt.hashed_files import sha256_of
from lit_gpt.store.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Options(CorpusOptions, FilterOptions, ExecutionOptions):
    """Filter documents; write those dropped to a folder per reason."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Stages that filter `files` into `folder`.

    Raises:
        InputError: the folder was begun with other settings, or there is no such tokenizer.
    """
    limits = options.limits()
    tokenizer = Tokenizer.load(options.tokenizer).fingerprint if options.tokenizer else None
    settings = {"limits": dataclasses.asdict(limits), "tokenizer": tokenizer}
    read, write = open_corpus(files, options, folder, settings)
    choose = partial(_filter, limits, options.tokenizer)
    describe = Call("inputs", partial(_describe_inputs, files, folder))
    stage = Stage("clean", [read, choose, write, describe], options.n_tasks(len(files)), folder)
    return with_summary([stage], "Filtered documents")


def _describe_inputs(files: Sequence[Path], folder: Path, rank: int, world_size: int) -> None:
    """Write path, size and hash of the task's input files, so that a model can be traced to them."""
    for file in task_files(files, rank, world_size):
        path = files[file]
        described = {"path": str(path), "bytes": path.stat().st_size, "sha256": _sha256(path)}
        write_json(folder / "inputs" / f"{file:06d}.json", described)


def _sha256(path: Path) -> str | None:
    """None if the file cannot be read to its end."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def _filter(
    limits: Limits, tokenizer_folder: Path | None, data: Iterable[CorpusDocument], rank: int, world_size: int
) -> Iterator[CorpusDocument]:
    """Mark the documents to drop with the reason. Count tokens if there is a tokenizer."""
    filters = Filters(limits)
    tokenizer = Tokenizer.load(tokenizer_folder) if tokenizer_folder else None
    for document in data:
        if tokenizer is not None:
            [tokens] = tokenizer.encode([document.text])
            document.tokens = len(tokens) - 2  # without BOS and EOS
        text = Text(document.text, document.metadata, document.tokens)
        document.excluded = filters.reason_against(text)
        yield document


# Punctuation at the beginning or inside of a word is part of it (--hilfe, und/oder); so is a number's point.
_UNITS = re.compile(r"[-/\\~@|+=]*\w(?:\S*\w)?(?:(?<=\d)\.)?|[-/\\~@|+=]+|\.+|[^\w\s]")
_WORD_CHAR = re.compile(r"\w")
_LETTERS = re.compile(r"[^\W\d_]+")
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")


class Text:
    """A text and its parts, computed on first use."""

    def __init__(self, text: str, metadata: Mapping[str, Any], n_tokens: int) -> None:
        self.text = text
        self.metadata = metadata
        self.n_tokens = n_tokens
        self.unrepeated: int | None = None
        """A length at which all sequences of units differ, once known; longer ones differ too."""

    @cached_property
    def units(self) -> list[str]:
        """Words and punctuation marks."""
        return _UNITS.findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        """Units with a letter or digit."""
        return [unit for unit in self.units if unit[0].isalnum() or _WORD_CHAR.search(unit)]

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    def ngrams(self, n: int) -> list[tuple[str, ...]]:
        return list(zip(*(self.units[start:] for start in range(n)), strict=False))

    def per_unit(self, number: float) -> float:
        """`number` per word or punctuation mark."""
        return number / max(len(self.units), 1)


def _language_score(text: Text) -> float | None:
    score = text.metadata.get("language_score")
    return score if isinstance(score, (int, float)) else None


def _letters_frac(text: Text) -> float:
    visible = "".join(text.text.split())
    return 1 - len(_LETTERS.sub("", visible)) / max(len(visible), 1)


def _alpha_words_frac(text: Text) -> float:
    return text.per_unit(sum(1 for word in text.words if word.isalpha() or _LETTERS.search(word)))


def _symbols_frac(text: Text) -> float:
    ellipses = text.text.count("...") + text.text.count("…")
    return text.per_unit(max(text.text.count("#"), ellipses))


def _lines_frac(text: Text, holds: Callable[[str], bool]) -> float:
    lines = text.text.splitlines()
    return sum(map(holds, lines)) / max(len(lines), 1)


def _top_ngram_frac(text: Text, n: int) -> float:
    counts = Counter(text.ngrams(n))
    if not counts:
        return 0.0
    words, count = max(counts.items(), key=lambda item: item[1])
    return (sum(map(len, words)) + n - 1) * count / len(text.text)


def _dup_ngram_frac(text: Text, n: int) -> float:
    """Share of the characters in sequences that came before; no unit counts twice."""
    if text.unrepeated is not None and n >= text.unrepeated:
        return 0.0
    ngrams = text.ngrams(n)
    if len(set(ngrams)) == len(ngrams):
        text.unrepeated = n
        return 0.0
    seen: set[tuple[str, ...]] = set()
    place = repeated = 0
    while place < len(ngrams):
        if (ngram := ngrams[place]) in seen:
            repeated += sum(map(len, ngram))
            place += n
        else:
            seen.add(ngram)
            place += 1
    return repeated / len(text.text)


def _stop_words(text: Text, stop_words: frozenset[str]) -> int:
    return len(stop_words.intersection(text.words))


def _stop_words_frac(text: Text, stop_words: frozenset[str]) -> float:
    return sum(word.lower() in stop_words for word in text.words) / max(len(text.words), 1)


def _signal(text: Text, name: str) -> float | None:
    return text.metadata.get("signals", {}).get(name)


Measure = Callable[[Text], float | None]
_MEASURES: dict[str, Measure] = {
    "language_score": _language_score,
    "words": lambda text: len(text.words),
    "tokens_per_word": lambda text: text.n_tokens / max(len(text.text.split()), 1),
    "bad_chars_frac": lambda text: len(_BAD.findall(text.text)) / len(text.text),
    "letters_frac": _letters_frac,
    "alpha_words_frac": _alpha_words_frac,
    "avg_word_length": lambda text: sum(map(len, text.words)) / max(len(text.words), 1),
    "symbols_frac": _symbols_frac,
    "bullet_lines_frac": lambda text: _lines_frac(text, lambda line: line.lstrip().startswith(("•", "-"))),
    "ellipsis_lines_frac": lambda text: _lines_frac(text, lambda line: line.rstrip().endswith(("...", "…"))),
    "new_lines_per_word": lambda text: text.per_unit(text.text.count("\n")),
    "dup_lines_frac": lambda text: find_duplicates(text.lines)[0] / max(len(text.lines), 1),
    "dup_line_chars_frac": lambda text: find_duplicates(text.lines)[1] / len(text.text),
}


@dataclass(frozen=True)
class Rule:
    """A measure and its limits."""

    name: str
    measure: Measure
    """None if the document does not have it; then the rule does not apply."""
    low: float | None
    high: float | None

    def broken(self, text: Text) -> dict[str, Any] | None:
        """`reason`, `value` and `limit` if the text breaks the rule."""
        value = self.measure(text)
        if value is None:
            return None
        if self.low is not None and value < self.low:
            return {"reason": f"min_{self.name}", "value": round(value, 4), "limit": self.low}
        if self.high is not None and value > self.high:
            return {"reason": f"max_{self.name}", "value": round(value, 4), "limit": self.high}
        return None


class Filters:
    """The rules that have a limit, cheap ones first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        stop_words = frozenset(limits.stop_words)
        measures: dict[str, Measure] = {
            **_MEASURES,
            "stop_words": partial(_stop_words, stop_words=stop_words),
            "stop_words_frac": partial(_stop_words_frac, stop_words=stop_words),
        }
        rules = [
            Rule(name, measure, getattr(limits, f"min_{name}", None), getattr(limits, f"max_{name}", None))
            for name, measure in measures.items()
        ]
        rules += [
            Rule(f"signal_{name}", partial(_signal, name=name), low, high)
            for name, (low, high) in limits.signals.items()
        ]
        rules += [
            Rule(f"{name}_{n}", partial(measure, n=n), None, high)
            for name, measure in (("top_ngram_frac", _top_ngram_frac), ("dup_ngram_frac", _dup_ngram_frac))
            for n, high in sorted(getattr(limits, f"max_{name}").items())
        ]
        self.rules = [rule for rule in rules if (rule.low, rule.high) != (None, None)]

    def reason_against(self, text: Text) -> dict[str, Any] | None:
        """Why to drop the text: the first rule it breaks. None if it is kept."""
        if not text.text.strip():
            return {"reason": "empty"}
        if text.metadata.get("source_duplicate"):
            return {"reason": "source_duplicate"}
        return next((broken for rule in self.rules if (broken := rule.broken(text))), None)
