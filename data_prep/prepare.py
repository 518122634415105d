"""Run every step from a crawl to token stores that training reads, by one YAML file.

    OUTPUT/extract/    the main text of web pages, of .warc and .html files, and with --source html
    OUTPUT/clean/      documents that the rules for language, characters and length keep, the others by reason
    OUTPUT/dedup/      the same without repeated paragraphs
    OUTPUT/lines/      what is left of them for the rules for lines and repetition, and again for length
    OUTPUT/minhash/    the same without near duplicates, with --near_duplicates
    OUTPUT/report.html what each rule dropped, with examples; flow.md has its table, flow.png its picture
    OUTPUT/tokenizer/  trained on the result, unless --tokenizer names one
    OUTPUT/train/      token store, packed into rows; its manifest names the sources, settings and counts
    OUTPUT/val/        token store of the documents held out

Run again, it does what is missing. `--executor slurm` submits everything at once, stage after stage.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.duplicates import dedup, minhash
from data_prep.filters import clean
from data_prep.filters.limits import around_deduplication
from data_prep.reading.pages import holds_pages
from data_prep.report.page import write_report
from data_prep.stages.corpus import Call, call_command, kept_files
from data_prep.stages.input_files import input_files, record_sizes
from data_prep.stages.pipeline import Stage, run_stages
from data_prep.stages.settings import check_settings, record_settings
from data_prep.stages.summary import finished_parts, in_short, record_origin, require_documents
from data_prep.text import extract
from data_prep.text.normalize import REPAIRS
from data_prep.tokenizing import job, train
from lit_gpt.cli import InputError, run_command
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, PositiveInt, Share
from lit_gpt.store import manifest as store_manifest


@dataclass(kw_only=True)
class Options(minhash.SimilarityOptions, clean.Options):
    """Prepare a corpus for training: filter, deduplicate, train a tokenizer, tokenize, pack."""

    output: Path
    """Folder for extract/, clean/, dedup/, lines/, minhash/, tokenizer/ and the stores train/ and val/."""
    tokenizer: Path | None = None
    """Folder of a tokenizer to use (default: train one on the documents that are kept)."""
    min_paragraph_bytes: NonNegativeInt = 0
    """Keep shorter paragraphs, repeated or not."""
    near_duplicates: bool = False
    """Drop near duplicates too, by --min_similarity."""
    tokenizer_type: Literal["byte_level", "sentencepiece"] = "byte_level"
    """Kind of tokenizer to train."""
    vocab_size: PositiveInt = 32000
    """Vocabulary size of the tokenizer to train."""
    sample_mb: PositiveFloat = 2000.0
    """Text to train the tokenizer on, in 10^6 bytes."""
    val_fraction: Share = 0.001
    """Share of the documents to hold out for validation, chosen by a hash of the id."""
    block_size: PositiveInt = 2048
    """Targets per row; the block_size of the training."""
    slurm_cpus: PositiveInt = 16
    """CPUs of the jobs that train the tokenizer and tokenize."""


def plan(files: list[Path], options: Options) -> tuple[list[Stage], list[Stage]]:
    """The stages that choose documents, and those that make stores of them."""
    stages, documents = corpus_stages(files, options)
    return stages, _store_stages([str(file) for file in documents], options)


def corpus_stages(files: list[Path], options: Options) -> tuple[list[Stage], list[Path]]:
    """The stages that choose documents, and the files that they leave."""
    output = options.output
    limits = options.limits()
    before, after = around_deduplication(limits)
    first = dataclasses.replace(options, preset="none", **vars(before))
    parts: dict[str, Path] = {}
    stages: list[Stage] = []
    documents = files
    if options.source == "html" or any(map(holds_pages, files)):
        parts["extract"] = output / "extract"
        stages += extract.plan(files, _extraction(options, parts["extract"]), parts["extract"])
        documents = kept_files(parts["extract"], len(files))
        first = dataclasses.replace(first, **extract.AFTER)
    parts["clean"] = output / "clean"
    stages += clean.plan(documents, first, parts["clean"])

    def add(
        name: str, plan_part: Callable[[list[Path], Any, Path], list[Stage]], kind: Any, **given: Any
    ) -> None:
        documents = kept_files(list(parts.values())[-1], len(files))
        parts[name] = output / name
        part = kind(input=[], output=parts[name], tasks=options.tasks, **given)
        stages.extend(plan_part(documents, part, parts[name]))

    add("dedup", dedup.plan, dedup.Options, min_paragraph_bytes=options.min_paragraph_bytes)
    others = dict.fromkeys(REPAIRS, False) | {"language_model": options.language_model}
    add("lines", partial(clean.plan, name="lines"), clean.Options, preset="none", **vars(after), **others)
    if options.near_duplicates:
        add("minhash", minhash.plan, minhash.Options, min_similarity=options.min_similarity)
    origin = partial(record_origin, next(iter(parts.values())) / "inputs", parts, output / "origin.json")
    stages.append(Stage("origin", [Call("origin", origin)], 1, output))
    page = partial(write_report, parts, output, limits.language, options.language_model)
    stages.append(Stage("report", [Call("report", page)], 1, output))
    return stages, kept_files(list(parts.values())[-1], len(files))


def _extraction(options: Options, folder: Path) -> extract.Options:
    shared = ("text_fields", "id_fields", "max_bad_lines", "tasks")
    return extract.Options(input=[], output=folder, **{name: getattr(options, name) for name in shared})


def _store_stages(documents: list[str], options: Options) -> list[Stage]:
    output = options.output
    tokenizer = options.tokenizer or output / "tokenizer"
    cpus = options.slurm_cpus if options.executor == "slurm" else 1
    stages = []
    if options.tokenizer is None:
        training = train.Options(
            input=documents,
            output=tokenizer,
            type=options.tokenizer_type,
            vocab_size=options.vocab_size,
            sample_mb=options.sample_mb,
        )
        done = tokenizer / "tokenizer.json"
        stages.append(_command_stage("tokenizer", train.train_tokenizer, training, options, cpus, done))
    tokenizing = job.Options(
        input=documents,
        tokenizer=tokenizer,
        output=output / "train",
        val_fraction=options.val_fraction,
        val_output=output / "val" if options.val_fraction else None,
        workers=options.workers if options.executor == "local" else None,
        made_from=output / "origin.json",
    )
    stages.append(_command_stage("tokenize", job.tokenize, tokenizing, options, cpus))
    for name in ("train", "val") if options.val_fraction else ("train",):
        rows = job.PackOptions(store=output / name, block_size=options.block_size)
        stages.append(_command_stage(f"pack-{name}", job.pack, rows, options))
    stages[0].pipeline.insert(0, Call("any", partial(require_documents, options.output)))
    return stages


def _command_stage(
    name: str,
    command: Callable[[Any], None],
    given: Any,
    options: Options,
    cpus: int = 1,
    done: Path | None = None,
) -> Stage:
    """A stage of one task that does the work of another command, whose options are `given`."""
    calls: list[Callable[..., Any]] = [
        Call("settings", partial(record_settings, options.output, _late_settings(options)[name])),
        Call(name, partial(call_command, command, given, done)),
    ]
    return Stage(name, calls, 1, options.output, cpus)


def _late_settings(options: Options) -> dict[str, dict[str, Any]]:
    """What only the stages that make stores depend on, by stage."""
    block_size = {"block_size": options.block_size}
    return {
        "tokenizer": {
            "tokenizer": options.tokenizer or [options.tokenizer_type, options.vocab_size, options.sample_mb]
        },
        "tokenize": {"val_fraction": options.val_fraction},
        "pack-train": block_size,
        "pack-val": block_size,
    }


def main(options: Options) -> None:
    if options.min_similarity != minhash.Options.min_similarity and not options.near_duplicates:
        raise InputError("--min_similarity needs --near_duplicates: give both or neither")
    files = input_files(options, options.stage is not None, pages=True)
    settings = {"files": files, "near_duplicates": options.near_duplicates}
    for late in _late_settings(options).values():
        settings |= late
    check_settings(options.output, settings, _unused(options.output))
    run = partial(run_stages, options=options, folder=options.output, command=Path(__file__))
    choose, store = plan(files, options)
    record_sizes(files, choose[0].folder)
    if options.executor == "local":
        run(choose)
        _show_counts(options.output)
        run(store)
    elif run(choose + store):
        _show_counts(options.output)
    else:
        return
    print(f"train with --train_data_dir {options.output / 'train'}")


def _unused(output: Path) -> list[str]:
    """Settings of stages that have made nothing yet."""
    made = {
        "tokenizer": output / "tokenizer/tokenizer.json",
        "val_fraction": output / "train" / store_manifest.NAME,
        "block_size": output / "logs/pack-train/completions/00000",
    }
    return [name for name, file in made.items() if not file.exists()]


def _show_counts(output: Path) -> None:
    for part in finished_parts(output):
        print(f"{part.name}: {in_short(part)}")
    print(f"report: {output / 'report.html'}", flush=True)


if __name__ == "__main__":
    run_command(Options, main)
