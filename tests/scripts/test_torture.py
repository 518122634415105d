"""A dozen faults, after each of which the run resumes with nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.cli import InputError
from scripts import torture

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_dozen_faults_lose_nothing(tmp_path):
    flags = ["--work_dir", str(tmp_path), "--faults", "12", "--seed", "12", "--steps", "80", "--stages", "3"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts/torture.py"), *flags],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| **all** | 12 | 12 | 12 |" in result.stdout


def test_a_folder_in_use_and_an_unknown_fault_are_refused(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="is not empty"):
        torture.main(torture.TortureOptions(work_dir=tmp_path))
    with pytest.raises(InputError, match="no such fault; known: one rank killed: staging"):
        torture.main(torture.TortureOptions(work_dir=tmp_path / "new", only=["earthquake"]))
    with pytest.raises(InputError, match="--stages 5 do not fit --steps 4"):
        torture.main(torture.TortureOptions(work_dir=tmp_path / "new", steps=4, stages=5))
