"""Drop documents that nearly repeat an earlier one, by MinHash."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.duplicates.minhash import Options, plan
from data_prep.stages.summary import run_and_report
from lit_gpt.cli import run_command


def main(options: Options) -> None:
    run_and_report(plan, options, Path(__file__))


if __name__ == "__main__":
    run_command(Options, main)
