"""Drop repeated paragraphs: a line that is not blank stays where it first occurs in the input, only there.

Three stages, each in as many tasks as wanted, none of which holds more than a bounded part of the corpus:
the hashes of all paragraphs, the repeats among them, the documents without them. A document left empty is
excluded. The result is the same for any number of tasks, and after any number of kills and reruns.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.stages.corpus import CorpusOptions, ReadFiles, WriteFiles, fields_given, input_files
from data_prep.stages.dedup_steps import DropRepeats, FindRepeats, SignParagraphs
from data_prep.stages.pipeline import ExecutionOptions, Stage, run_stages, settle
from data_prep.stages.summary import Summarise, in_short
from lit_gpt.cli import run_command
from lit_gpt.option_types import NonNegativeInt


@dataclass(kw_only=True)
class Options(ExecutionOptions, CorpusOptions):
    """Drop paragraphs that occur earlier in the input."""

    min_paragraph_bytes: NonNegativeInt = 0
    """Shorter paragraphs are left alone, repeated or not."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Deduplication of `files`, which need not exist yet, into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    tasks = options.n_tasks(len(files))
    settings = {
        "files": files,
        **fields_given(options),
        "min_paragraph_bytes": options.min_paragraph_bytes,
        "tasks": tasks,
    }
    settle(folder, settings)
    read = ReadFiles(files, options.read_as(), folder, options.max_bad_lines)
    sign = SignParagraphs(folder, options.min_paragraph_bytes)
    drop = DropRepeats(folder, options.min_paragraph_bytes, tasks)
    names = ["dedup-signatures", "dedup-repeats", "dedup-drop"]
    return [
        Stage(names[0], [read, sign], tasks, folder),
        Stage(names[1], [FindRepeats(folder, tasks)], tasks, folder),
        Stage(names[2], [read, drop, WriteFiles(files, folder)], tasks, folder),
        Stage("dedup-summary", [Summarise(folder, "Without repeated paragraphs", names)], 1, folder),
    ]


def main(options: Options) -> None:
    """Plan, run or submit."""
    stages = plan(input_files(options, options.stage is not None), options, options.output)
    if run_stages(stages, options, options.output, Path(__file__)):
        print(in_short(options.output))


if __name__ == "__main__":
    run_command(Options, main)
