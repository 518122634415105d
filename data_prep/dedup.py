"""Drop repeated paragraphs: a paragraph stays in the first document that has it.

Three stages: hash all paragraphs, find the repeats among the hashes, write the documents without them. Each
runs in any number of tasks, in bounded memory. Tasks, kills and reruns do not change the result.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.duplicates.dedup import Options, plan
from data_prep.stages.summary import run_and_report
from lit_gpt.cli import run_command


def main(options: Options) -> None:
    run_and_report(plan, options, Path(__file__))


if __name__ == "__main__":
    run_command(Options, main)
