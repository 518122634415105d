"""Drop repeated paragraphs: a line that is not blank stays where it first occurs in the input, only there.

Three stages, each in as many tasks as wanted, none of which holds more than a bounded part of the corpus:
the hashes of all paragraphs, the repeats among them, the documents without them. A document left empty is
excluded. The result is the same for any number of tasks, and after any number of kills and reruns.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.corpus import ReadFiles, WriteFiles
from data_prep.dedup_steps import DropRepeats, FindRepeats, SignParagraphs
from data_prep.pipeline import ExecutionOptions, Stage, claim_folder, run_stages
from data_prep.readers import find_files
from lit_gpt.cli import run_command


@dataclass(kw_only=True)
class Options(ExecutionOptions):
    """Drop paragraphs that occur earlier in the input."""

    input: list[str]
    """Files or globs, in the order that decides which occurrence is the first."""
    output: Path
    """Folder for `documents/`, what was excluded, markers and counts."""
    min_paragraph_bytes: int = 0
    """Shorter paragraphs are left alone, repeated or not."""
    source: str = "jsonl"
    """Kind of corpus, see data_prep/sources.py."""
    max_bad_lines: int = 1000
    """Stop when a file has more unusable lines."""


def stages(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Deduplication of `files` into `folder`."""
    tasks = options.n_tasks(len(files))
    read = ReadFiles(files, options.source, folder, options.max_bad_lines)
    sign = SignParagraphs(folder, options.min_paragraph_bytes)
    drop = DropRepeats(folder, options.min_paragraph_bytes, tasks)
    return [
        Stage("signatures", [read, sign], tasks),
        Stage("repeats", [FindRepeats(folder, tasks)], tasks),
        Stage("drop", [read, drop, WriteFiles(files, folder)], tasks),
    ]


def main(options: Options) -> None:
    """Plan, run or submit."""
    files = find_files(options.input)
    settings = {"files": files, "min_paragraph_bytes": options.min_paragraph_bytes, "tasks": options.tasks}
    claim_folder(options.output, settings, options)
    run_stages(stages(files, options, options.output), options, options.output, Path(__file__))


if __name__ == "__main__":
    run_command(Options, main)
