"""The loader's benchmark runs with whatever libraries are there, and names those that are not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_every_loader_that_is_installed_and_names_the_others(train_store_dir, tmp_path):
    hide = "import sys; sys.modules['datatrove'] = sys.modules['litdata'] = sys.modules['streaming'] = None"
    (tmp_path / "sitecustomize.py").write_text(hide)
    flags = {"store": train_store_dir, "work_dir": tmp_path, "block_size": 128, "commit_rows": 64}
    flags |= {"seconds": 0.05, "rounds": 2}
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench_loader.py")]
        + [part for name, value in flags.items() for part in (f"--{name}", str(value))],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    for name in ("datatrove", "litdata, TokensLoader", "mosaicml-streaming"):
        assert f"left out: {name} (" in result.stdout
    for name in ("ours, logged", "ours, not logged", "random windows of a memory map"):
        assert re.search(rf"^\| {name} \| \d+ \| [\d.]+ x \| \d+ \| [\d.]+ x \|$", result.stdout, re.M)
    waste = float(re.search(r"^\| best_fit \| ([\d.]+)% ", result.stdout, re.M)[1])
    assert 0 < waste < 5
    assert re.search(r"^Log: [\d.]+ bytes a segment", result.stdout, re.M)
