"""Filter documents: options and stages of clean.py, which prepare.py runs too."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.stages.corpus import Call, CorpusDocument, CorpusOptions, open_corpus, task_files
from data_prep.stages.filters import Filters, Text
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
