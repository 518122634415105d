"""The trial of docs/chat.md, small, with the commands that users give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_tuned_model_ends_its_turns_and_the_base_does_not(tmp_path):
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "scripts/chat_trial.sh"), str(out)]
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "60", "MEGABYTES": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = (out / "table.md").read_text().splitlines()[2:]
    base, chat = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert (base[0], chat[0]) == ("base", "chat")
    assert float(chat[1]) < 0.9 * float(base[1])  # of conversations
    assert float(chat[2]) < float(base[2])  # of documents, which were replayed
    assert base[3] == "0 of 50"
    ended, _, asked = chat[3].split()
    assert int(ended) > int(asked) / 2
