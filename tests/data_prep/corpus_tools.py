"""Run commands over a corpus and read what their stages write, for several tests."""

import json
import os
import signal
import subprocess
import sys
import time

import zstandard


def read_zst(path):
    """The objects of a .jsonl.zst file."""
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode()
    return [json.loads(line) for line in text.split("\n") if line]


def documents(folder):
    """All objects of a folder of documents, in file order."""
    return [record for path in sorted(folder.glob("*.jsonl.zst")) for record in read_zst(path)]


def write_jsonl(path, records):
    """Objects to lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def contents(folder):
    """Every document file of a result, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.zst")}


def stats(folder):
    """The counts of a finished command."""
    return json.loads((folder / "stats.json").read_text(encoding="utf-8"))


def run_with_kills(command, files, output, stages):
    """Run a command, kill it once in each of its stages, and let it finish."""
    command = [sys.executable, str(command), "--output", str(output), "--workers", "2", "--input"]
    command += [str(file) for file in files]
    kills = 0
    for stage in stages:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        completions = output / "logs" / stage / "completions"
        while process.poll() is None and not (completions.is_dir() and os.listdir(completions)):
            time.sleep(0.005)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)  # the parent alone: its workers must not live on
        process.wait()
    assert kills == len(stages)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
