#!/usr/bin/env python
"""Check what only a GPU can show, in parts of at most eight minutes each. check_gpu.sh calls it.

The output of a part goes to the terminal and to OUTPUT/PART.txt as it comes. A part that has passed does not
run again unless --parts names it.
"""

import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.checkpoint.folder import folder_name
from lit_gpt.cli import InputError, run_command
from scripts.bench.sample_store import sample_store

ROOT = Path(__file__).resolve().parents[1]
PART_SECONDS = 8 * 60
PACKAGES = (
    "torch", "triton", "lightning-fabric", "lightning", "transformers", "tokenizers", "pyarrow", "orjson",
    "pytest", "hypothesis", "torchao", "litgpt",
)  # fmt: skip
OPTIMIZATIONS = ("wide-rope", "large-chunks", "fp32-product", "compiled-norm")
UNDONE = [*(f"without-{name}" for name in OPTIMIZATIONS), "ours"]


@dataclass
class CheckOptions:
    """Check a GPU: versions, kernels, tests, training and resuming, the sharded path; then measure speed."""

    output: Path
    """Folder for the results; given again, a later call continues where an earlier one stopped."""
    parts: list[str] = field(default_factory=list)
    """Parts to run, in this order; default: all that have not passed. check_gpu.sh lists them."""
    train_data_dir: str | None = None
    """Token store to train on and to measure with; default: one of the sample corpus, made here."""
    smoke: bool = False
    """Test this script itself with a tiny shape, also without a GPU; its figures mean nothing."""


def main(options: CheckOptions) -> None:
    """Run the parts; exit 1 if one failed."""
    import torch

    if unknown := [name for name in options.parts if name not in PARTS]:
        raise InputError(f"--parts {' '.join(unknown)}: unknown; known: {', '.join(PARTS)}")
    if not options.smoke and not torch.cuda.is_available():
        raise InputError(
            "torch sees no CUDA device here: run this on a machine with a GPU, with torch's CUDA build"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.parts or PARTS if not _passes(name, options)]
    print(f"\nnot passed: {', '.join(failed)}" if failed else "\nall parts passed")
    sys.exit(1 if failed else 0)


def _passes(name: str, options: CheckOptions) -> bool:
    done = options.output / f"{name}.done"
    if done.exists() and name not in options.parts:
        print(f"== {name}: passed before")
        return True
    done.unlink(missing_ok=True)
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    with (options.output / f"{name}.txt").open("w") as log:
        passed = all(_run(command, log, began + PART_SECONDS) for command in PARTS[name](options))
    print(
        f"== {name}: {'passed' if passed else 'NOT PASSED'} in {time.monotonic() - began:.0f} s", flush=True
    )
    if passed:
        done.touch()
    return passed


def _run(command: list[str], log: IO[str], deadline: float) -> bool:
    """Show and log what a command prints; kill it and its children at the deadline."""

    def show(line: str) -> None:
        print(line, end="", flush=True)
        log.write(line)
        log.flush()

    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"TORCH_LOGS": "recompiles", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    timer = threading.Timer(max(deadline - time.monotonic(), 0), os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    for line in process.stdout or ():
        show(line)
    timer.cancel()
    if (code := process.wait()) != 0:
        reason = "killed after 8 minutes" if code == -signal.SIGKILL else f"exit code {code}"
        show(f"{reason}: python {shlex.join(command)}\n")
    return code == 0


def print_versions() -> None:
    """Print packages, device, compilers, and the attention kernel chosen for each head width."""
    import torch

    from lit_gpt.model.attention import choose_attention

    for name in PACKAGES:
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed")
    print("compilers:", ", ".join(f"{name} {shutil.which(name) or 'missing'}" for name in ("gcc", "g++")))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        print(f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    for width in (64, 128, 192):
        kernel, reason = choose_attention("auto", device, torch.bfloat16, width)
        print(f"attention kernel for heads of {width}: {kernel} ({reason})")


def compare_runs(one: str, other: str, tolerance: float) -> None:
    """Print how far two runs differ; exit 1 if by more than `tolerance`, where 0 means bitwise equal."""
    from pretrain.monitor.metrics import read_metrics
    from scripts.compare_revisions import first_difference

    if tolerance == 0:
        found = first_difference(Path(one), Path(other))
        print(f"{one} and {other}: {found or 'every loss and every weight bitwise equal'}")
        sys.exit(found is not None)
    losses = [[row["loss"] for row in read_metrics(Path(run) / "metrics.csv")] for run in (one, other)]
    difference = max(abs(left - right) for left, right in zip(*losses, strict=True))
    print(f"{one} and {other}: losses differ by {difference:.2e} at most, {tolerance} is allowed")
    sys.exit(difference > tolerance)


# ---- the parts: each yields commands, which run in order until one fails


def _versions(options: CheckOptions) -> Iterator[list[str]]:
    yield ["-c", "from scripts.check_gpu import print_versions; print_versions()"]


def _tests(options: CheckOptions) -> Iterator[list[str]]:
    files = [f"tests/lit_gpt/model/test_{name}.py" for name in ("attention", "loss", "rope", "gpt")]
    yield ["-m", "pytest", "-q", "-rs", "--noconftest", "-p", "no:cacheprovider", *files]


def _training(options: CheckOptions) -> Iterator[list[str]]:
    """Train with a smaller last micro-batch, validation and a checkpoint every 10 steps; then resume."""
    yield _train(options, "trained")
    yield _train(options, "trained", max_steps=40, resume="true")


def _deterministic(options: CheckOptions) -> Iterator[list[str]]:
    yield _train(options, "straight", deterministic="true")
    yield from _resumed_equals(options, "straight", deterministic="true")


def _sharded(options: CheckOptions) -> Iterator[list[str]]:
    flags = {"deterministic": "true", "force_sharding": "true"}
    yield _train(options, "sharded", **flags)
    yield from _resumed_equals(options, "sharded", **flags)
    if (_run_folder(options, "straight") / "done").exists():
        yield _compare(options, "straight", "sharded", tolerance=0.05)


def _resumed_equals(options: CheckOptions, run: str, **flags: object) -> Iterator[list[str]]:
    """Resume a copy of the run at step 10, train to the end, compare bit for bit."""
    copy = _run_folder(options, f"{run}-resumed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(_run_folder(options, run), copy)
    shutil.rmtree(copy / folder_name(20))
    yield _train(options, copy.name, resume="true", **flags)
    yield _compare(options, run, copy.name, tolerance=0)


def _run_folder(options: CheckOptions, name: str) -> Path:
    return options.output.resolve() / "runs" / name


def _train(options: CheckOptions, name: str, **flags: object) -> list[str]:
    model_name, rows = ("tiny_100K", 4) if options.smoke else ("LLaMmlein_120M", 64)
    folder = _run_folder(options, name)
    if "resume" not in flags:
        shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "train_data_dir": _store(options), "val_data_dir": _store(options), "out_dir": folder,
        "model_name": model_name, "micro_batch_size": rows, "global_batch_size": rows * 5 // 4,
        "max_steps": 20, "warmup_steps": 5, "lr_schedule": "constant", "save_step_interval": 10,
        "eval_step_interval": 10, "eval_iters": 2, "log_step_interval": 1,
    } | flags  # fmt: skip
    return [
        "pretrain/tinyllama_fabric.py",
        *(text for flag, value in settings.items() for text in (f"--{flag}", str(value))),
    ]


def _compare(options: CheckOptions, one: str, other: str, tolerance: float) -> list[str]:
    folders = ", ".join(repr(str(_run_folder(options, name))) for name in (one, other))
    return ["-c", f"from scripts.check_gpu import compare_runs; compare_runs({folders}, {tolerance})"]


def _store(options: CheckOptions) -> str:
    """Return the store that was given, or make one of the sample corpus once."""
    made = options.output.resolve() / "sample"
    if options.train_data_dir is None and not (made / "store" / "manifest.json").exists():
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        sample_store(made)
    return str(Path(options.train_data_dir).resolve() if options.train_data_dir else made / "store")


def _bench(
    name: str, shape: str, variants: list[str], lengths: tuple[int, ...] = ()
) -> Callable[[CheckOptions], Iterator[list[str]]]:
    """Compare variants in turns on the store, or on documents of fixed lengths."""

    def part(options: CheckOptions) -> Iterator[list[str]]:
        command = ["scripts/bench_step.py", "--output", str(options.output.resolve() / f"{name}.json")]
        command += ["--shapes", "tiny_100K:4" if options.smoke else shape, "--variants", *variants]
        command += (
            ["--document_lengths", *map(str, lengths)] if lengths else ["--train_data_dir", _store(options)]
        )
        yield command + (["--steps", "2", "--warmup", "1"] if options.smoke else [])

    return part


def _profile(options: CheckOptions) -> Iterator[list[str]]:
    shapes = ["tiny_100K:4"] if options.smoke else ["LLaMmlein_1B:16", "LLaMmlein_120M:64"]
    yield ["scripts/bench_step.py", "--profile", "--shapes", *shapes, "--train_data_dir", _store(options)]


PARTS: dict[str, Callable[[CheckOptions], Iterator[list[str]]]] = {
    "versions": _versions,
    "tests": _tests,
    "train": _training,
    "deterministic": _deterministic,
    "sharded": _sharded,
    "bench-1B": _bench("bench-1B", "LLaMmlein_1B:16", ["ours", "transformers", "litgpt"]),
    "bench-120M": _bench("bench-120M", "LLaMmlein_120M:64", ["ours", "transformers", "litgpt"]),
    "bench-7B": _bench("bench-7B", "LLaMmlein_7B:4:bf16-true", ["ours", "litgpt"]),
    "profile": _profile,
    "lengths": _bench("lengths", "LLaMmlein_1B:16", ["without-buckets", "ours"], (2048, 128)),
    "changes-120M": _bench("changes-120M", "LLaMmlein_120M:64", UNDONE),
    "changes-1B": _bench("changes-1B", "LLaMmlein_1B:16", UNDONE),
    "deterministic-cost": _bench(
        "deterministic-cost", "LLaMmlein_1B:16", ["without-unfilled", "ours-deterministic", "ours"]
    ),
    "sharded-cost": _bench(
        "sharded-cost", "LLaMmlein_1B:16", ["without-kept-root", "ours-sharded", "ours-fa2", "ours"]
    ),
    "float8": _bench("float8", "LLaMmlein_1B:16", ["ours-float8", "ours-float8-rowwise", "ours"], (2048,)),
    "experiments": _bench(
        "experiments", "LLaMmlein_1B:16", ["ours-longest-first", "ours-cudagraphs", "ours"]
    ),
    "autotune": _bench("autotune", "LLaMmlein_1B:16", ["ours-autotune", "ours"]),
}


if __name__ == "__main__":
    run_command(CheckOptions, main)
