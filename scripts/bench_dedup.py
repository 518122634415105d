"""Measure paragraph deduplication on a generated corpus of any size: speed, memory, and whether it is right.

    python scripts/bench_dedup.py --folder /scratch/bench --gigabytes 5

Paragraphs are as short as in technical documentation, 60 bytes on average, and half of them repeat an earlier
one: more work per byte than web text. The generator counts the repeats, so the result can be checked.
"""

import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import zstandard

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from lit_gpt.cli import progress, run_command
from lit_gpt.option_types import PositiveFloat, PositiveInt

WORDS = """
    der die das und oder in zu mit von auf für Brücke Straße Garten Wasser Licht Maschine Rechnung Wald Stadt
    Zeit Arbeit Kinder gehen stehen finden bauen schreiben lesen öffnen groß klein alt neu schnell leise über
"""
SHARED = 200_000  # paragraphs that repeat, those early in the list most often
REPEATED = 0.55


@dataclass
class Options:
    """Generate a corpus, deduplicate it, and report."""

    folder: Path
    """Where the corpus and the result go; about half of --gigabytes, compressed, and the work files."""
    gigabytes: PositiveFloat = 1.0
    """Uncompressed size of the corpus, in 10^9 bytes."""
    file_megabytes: PositiveFloat = 100.0
    """Uncompressed size of a file, in 10^6 bytes."""
    workers: PositiveInt = 2
    """Processes."""


def main(options: Options) -> None:
    """Generate the corpus if it is missing, deduplicate, compare the counts."""
    made = generate(options)
    output = options.folder / "deduplicated"
    command = [sys.executable, str(REPOSITORY / "data_prep" / "dedup.py"), "--output", str(output)]
    command += ["--input", str(options.folder / "corpus" / "*.zst"), "--workers", str(options.workers)]
    begun = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    stages = json.loads((output / "stats.json").read_text(encoding="utf-8"))["stages"]
    found = {
        "paragraphs": stages["dedup-signatures"]["paragraphs"],
        "repeats": stages["dedup-repeats"]["repeats"],
    }
    print(f"input        {made['bytes'] / 1e9:.2f} GB, {made['paragraphs']:,} paragraphs, uncompressed")
    print(f"speed        {made['bytes'] / cpu / 1e6:.1f} MB a CPU second, {cpu:.0f} CPU seconds in all")
    print(f"time         {seconds:.0f} s with {options.workers} processes")
    print(f"memory       {used.ru_maxrss / 1024:.0f} MB resident, the largest process")
    for name, sizes in (("signatures", "*.bin"), ("repeats", "*.bin"), ("documents", "*.zst")):
        size = sum(path.stat().st_size for path in (output / name).glob(sizes))
        print(f"disk         {size / 1e9:.3f} GB {name}, {size / made['bytes']:.3f} of the input")
    is_right = all(made[name] == count for name, count in found.items())
    print(f"right        {is_right}: {found['repeats']:,} repeats")


def generate(options: Options) -> dict[str, int]:
    """Generate the corpus in `folder/corpus`; returns its bytes, paragraphs and repeats."""
    folder = options.folder / "corpus"
    summary = folder / "made.json"
    if summary.exists():
        return json.loads(summary.read_text())
    folder.mkdir(parents=True)
    rng = random.Random(0)
    words = WORDS.split()
    shared = [" ".join(rng.choices(words, k=rng.randint(2, 17))) + f" {n}." for n in range(SHARED)]
    made, used = {"bytes": 0, "paragraphs": 0, "repeats": 0}, bytearray(SHARED)
    n_files = max(1, round(options.gigabytes * 1e3 / options.file_megabytes))
    for number in progress(range(n_files), description="generate", unit=" files"):
        size = 0
        compressor = zstandard.ZstdCompressor(level=1)
        with (
            (folder / f"{number:05d}.jsonl.zst").open("wb") as file,
            compressor.stream_writer(file) as stream,
        ):
            while size < options.file_megabytes * 1e6:
                line = document(rng, shared, used, made)
                stream.write(line)
                size += len(line)
        made["bytes"] += size
    summary.write_text(json.dumps(made))
    return made


def document(rng: random.Random, shared: list[str], used: bytearray, made: dict[str, int]) -> bytes:
    """Generate a line of JSON; counts its paragraphs and repeats in `made`."""
    paragraphs = []
    for _ in range(rng.randint(3, 50)):
        number = int(SHARED * rng.random() ** 3)
        made["paragraphs"] += 1
        if rng.random() < REPEATED and shared[number] not in paragraphs:
            paragraphs.append(shared[number])
            made["repeats"] += used[number]
            used[number] = 1
        else:
            paragraphs.append(f"{shared[number]} {made['paragraphs']}")
    record = {"id": f"d{made['paragraphs']}", "text": "\n".join(paragraphs)}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    run_command(Options, main)
