"""Keep the documents worth training on; write the others to a folder for each reason to drop them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.filters.clean import Options, plan
from data_prep.stages.summary import run_and_report
from lit_gpt.cli import run_command


def main(options: Options) -> None:
    run_and_report(plan, options, Path(__file__))


if __name__ == "__main__":
    run_command(Options, main)
