"""The benchmark runs; with FineWeb2's limits and our words, datatrove's filters decide as ours."""

import re
from pathlib import Path

import pytest

from scripts.bench_filters import Options, main


def test_every_measurement_is_printed(corpus_files: list[Path], capsys: pytest.CaptureFixture[str]):
    main(Options([str(file) for file in corpus_files], sample_mb=0.5, repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == [
        "datatrove's filters",
        "fineweb2_german",
        "german",
        "datatrove's, languages",
        "german, languages",
        "clean.py",
    ]
    assert "100.00% decide alike" in lines[1]
