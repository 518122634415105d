"""Keep the documents worth training on: filters with a limit each, and a reason for all that is dropped."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.stages.clean_steps import FilterDocuments
from data_prep.stages.corpus import (
    CorpusOptions,
    DescribeInputs,
    ReadFiles,
    WriteFiles,
    fields_given,
    input_files,
)
from data_prep.stages.filters import Limits, preset_values, with_preset
from data_prep.stages.pipeline import ExecutionOptions, Stage, run_stages, settle
from data_prep.stages.summary import Summarise, in_short
from lit_gpt.cli import InputError, run_command
from lit_gpt.store.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Options(Limits, ExecutionOptions, CorpusOptions):
    """Filter documents; what is excluded goes to files by reason."""

    GROUP_TITLE: ClassVar = "Filters, as in data_prep/clean.py"

    preset: Literal["german", "fineweb2_german", "none"] = "german"
    """Limits where none are given."""
    SHOWN_DEFAULTS: ClassVar = preset_values()

    tokenizer: Path | None = None
    """Folder of the tokenizer whose tokens are counted."""


def limits_of(options: Options) -> Limits:
    """The limits of a command's options.

    Raises:
        InputError: a limit on tokens without a tokenizer.
    """
    names = [limit.name for limit in dataclasses.fields(Limits)]
    limits = with_preset(Limits(**{name: getattr(options, name) for name in names}), options.preset)
    if options.tokenizer is None and (limits.min_tokens_per_word or limits.max_tokens_per_word):
        raise InputError("--min_tokens_per_word and --max_tokens_per_word need a --tokenizer")
    return limits


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Filtering of `files` into `folder`.

    Raises:
        InputError: the folder was begun with other settings, or there is no such tokenizer.
    """
    settings = {
        "files": files,
        **fields_given(options),
        "limits": dataclasses.asdict(limits_of(options)),
        "tokenizer": Tokenizer.load(options.tokenizer).fingerprint if options.tokenizer else None,
    }
    settle(folder, settings)
    pipeline = [
        ReadFiles(files, options.read_as(), folder, options.max_bad_lines),
        FilterDocuments(limits_of(options), options.tokenizer),
        WriteFiles(files, folder),
        DescribeInputs(files, folder),
    ]
    return [
        Stage("clean", pipeline, options.n_tasks(len(files)), folder),
        Stage("clean-summary", [Summarise(folder, "Filtered documents", ["clean"])], 1, folder),
    ]


def main(options: Options) -> None:
    """Plan, run or submit."""
    stages = plan(input_files(options, options.stage is not None), options, options.output)
    if run_stages(stages, options, options.output, Path(__file__)):
        print(in_short(options.output))


if __name__ == "__main__":
    run_command(Options, main)
