"""Extract the main text of web pages; write those without any to a folder for each reason."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.stages.summary import run_and_report
from data_prep.text.extract import Options, plan
from lit_gpt.cli import run_command


def main(options: Options) -> None:
    run_and_report(plan, options, Path(__file__), pages=True)


if __name__ == "__main__":
    run_command(Options, main)
