"""The whole way from a crawl to token stores that training reads, from one YAML.

    OUTPUT/clean/      documents that the filters keep, the others by reason, report.html
    OUTPUT/dedup/      the same without repeated paragraphs, report.html
    OUTPUT/minhash/    and without near duplicates, if wanted
    OUTPUT/tokenizer/  trained on that, unless --tokenizer names one
    OUTPUT/train/      token store, packed into rows; its manifest names the sources, settings and counts
    OUTPUT/val/        the same of the documents held out

Run again, it does what is missing. `--executor slurm` submits everything at once, stage after stage.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep import clean, dedup, minhash, pack, tokenize_corpus, train_tokenizer
from data_prep.stages.corpus import input_files, kept_files
from data_prep.stages.pipeline import Stage, run_stages, settle
from data_prep.stages.prepare_steps import RecordOrigin, RunCommand
from data_prep.stages.summary import in_short
from lit_gpt.cli import run_command
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, PositiveInt, Share


@dataclass(kw_only=True)
class Options(clean.Options):
    """Prepare a corpus for training: filter, deduplicate, train a tokenizer, tokenize, pack."""

    output: Path
    """Folder for clean/, dedup/, minhash/, tokenizer/ and the stores train/ and val/."""
    tokenizer: Path | None = None
    """Folder of a tokenizer to use; without it one is trained on what is kept."""
    min_paragraph_bytes: NonNegativeInt = 0
    """Deduplication leaves shorter paragraphs alone."""
    near_duplicates: bool = False
    """Drop near duplicates too."""
    tokenizer_type: Literal["byte_level", "sentencepiece"] = "byte_level"
    """Kind of tokenizer to train where --tokenizer names none."""
    vocab_size: PositiveInt = 32000
    """Ids of the tokenizer to train."""
    sample_mb: PositiveFloat = 2000.0
    """Million bytes of text to train the tokenizer on."""
    val_fraction: Share = 0.001
    """Share of the documents held out for validation, by a hash of the id."""
    block_size: PositiveInt = 2048
    """Predictions in a row, the block_size of the training."""
    slurm_cpus: PositiveInt = 16
    """CPUs of the job that tokenizes."""


def plan(files: list[Path], options: Options) -> list[Stage]:
    """All stages, from the input files to packed stores."""
    output = options.output
    stages = clean.plan(files, options, output / "clean")
    parts = {"clean": output / "clean"}
    last = kept_files(parts["clean"], len(files))
    parts["dedup"] = output / "dedup"
    stages += dedup.plan(
        last,
        dedup.Options(
            input=[],
            output=parts["dedup"],
            tasks=options.tasks,
            min_paragraph_bytes=options.min_paragraph_bytes,
        ),
        parts["dedup"],
    )
    if options.near_duplicates:
        last = kept_files(parts["dedup"], len(files))
        parts["minhash"] = output / "minhash"
        near = minhash.Options(input=[], output=parts["minhash"], tasks=options.tasks)
        stages += minhash.plan(last, near, parts["minhash"])
    last = kept_files(list(parts.values())[-1], len(files))
    stages.append(
        Stage("origin", [RecordOrigin(output / "clean" / "inputs", parts, output / "origin.json")], 1, output)
    )
    return stages + _store_stages([str(file) for file in last], options)


def _store_stages(documents: list[str], options: Options) -> list[Stage]:
    """Tokenizer, stores and packing."""
    output, stages = options.output, []
    tokenizer = options.tokenizer or output / "tokenizer"
    cpus = options.slurm_cpus if options.executor == "slurm" else 1
    if options.tokenizer is None:
        train = train_tokenizer.Options(
            input=documents,
            output=tokenizer,
            type=options.tokenizer_type,
            vocab_size=options.vocab_size,
            sample_mb=options.sample_mb,
        )
        learn = RunCommand(train_tokenizer.main, train, done=tokenizer / "tokenizer.json")
        stages.append(Stage("tokenizer", [learn], 1, output, cpus))
    encode = tokenize_corpus.Options(
        input=documents,
        tokenizer=tokenizer,
        output=output / "train",
        val_fraction=options.val_fraction,
        val_output=output / "val" if options.val_fraction else None,
        workers=options.workers if options.executor == "local" else None,
        made_from=output / "origin.json",
    )
    stages.append(Stage("tokenize", [RunCommand(tokenize_corpus.main, encode)], 1, output, cpus))
    for name in ("train", "val") if options.val_fraction else ("train",):
        packing = pack.Options(store=output / name, block_size=options.block_size)
        stages.append(Stage(f"pack-{name}", [RunCommand(pack.main, packing)], 1, output))
    return stages


def main(options: Options) -> None:
    """Plan, run or submit."""
    files = input_files(options, options.stage is not None)
    settings = {
        "files": files,
        "near_duplicates": options.near_duplicates,
        "tokenizer": options.tokenizer or [options.tokenizer_type, options.vocab_size, options.sample_mb],
        "val_fraction": options.val_fraction,
        "block_size": options.block_size,
    }
    settle(options.output, settings)
    if run_stages(plan(files, options), options, options.output, Path(__file__)):
        for part in ("clean", "dedup", "minhash"):
            if (options.output / part).exists():
                print(f"{part}: {in_short(options.output / part)}")
        print(f"train with --train_data_dir {options.output / 'train'}")


if __name__ == "__main__":
    run_command(Options, main)
