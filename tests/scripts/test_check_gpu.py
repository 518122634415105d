"""The script that tries a GPU, as far as it goes without one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.step_variants import OTHERS, SWITCHES
from scripts.check_gpu import PARTS, ROOT, CheckOptions

OTHER_BENCHES = ("lengths", "float8", "experiments", "autotune")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_gpu.py"


def check(output: Path, store: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--output", str(output), "--smoke", "true", "--train_data_dir"]
    command += [str(store), *(["--parts", *parts] if parts else [])]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_every_kind_of_part_runs_and_what_has_passed_does_not_run_again(tmp_path, train_store_dir):
    result = check(tmp_path, train_store_dir, "versions", "deterministic", "sharded", "lengths", "profile")
    assert result.returncode == 0, result.stdout
    assert "attention kernel for heads of 64: sdpa" in (tmp_path / "versions.txt").read_text()
    assert result.stdout.count("every loss and every weight bitwise equal") == 2
    assert "sharded: losses differ by" in result.stdout
    figures = json.loads((tmp_path / "lengths.json").read_text())
    assert {(line["data"], line["variant"]) for line in figures} == {
        (f"random documents of {length}", variant)
        for length in (2048, 128)
        for variant in ("ours", "without-buckets")
    }
    assert "ms a step" in (tmp_path / "profile.txt").read_text()

    for name in ("tests", "bench-1B", "bench-120M", "bench-7B", "changes-120M", "changes-1B"):
        (tmp_path / f"{name}.done").touch()
    for name in ("deterministic-cost", "sharded-cost", "float8", "experiments", "autotune"):
        (tmp_path / f"{name}.done").touch()
    result = check(tmp_path, train_store_dir)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("passed before") == 16
    assert "== train: passed in" in result.stdout
    assert "resumed from" in (tmp_path / "train.txt").read_text()


def test_the_tests_that_a_gpu_is_to_pass_are_found_and_need_no_conftest(tmp_path):
    [command] = PARTS["tests"](CheckOptions(output=tmp_path))
    result = subprocess.run(
        [sys.executable, *command, "--setup-plan"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout


def test_the_variants_that_parts_name_exist(tmp_path):
    options = CheckOptions(output=tmp_path, train_data_dir=str(tmp_path))
    benches = {
        name: next(part(options)) for name, part in PARTS.items() if "-" in name or name in OTHER_BENCHES
    }
    assert len(benches) == 11
    for command in benches.values():
        variants = command[command.index("--variants") + 1 :]
        ends = [at for at, word in enumerate(variants) if word.startswith("--")]
        assert set(variants[: ends[0] if ends else None]) <= {*SWITCHES, *OTHERS}


def test_a_part_that_fails_is_named_and_the_next_one_runs(tmp_path):
    result = check(tmp_path, tmp_path / "no store", "train", "versions")
    assert result.returncode == 1
    assert "== train: NOT PASSED" in result.stdout
    assert "no store" in (tmp_path / "train.txt").read_text()
    assert "== versions: passed" in result.stdout
    assert result.stdout.endswith("not passed: train\n")
    assert [path.name for path in tmp_path.glob("*.done")] == ["versions.done"]


def test_a_machine_without_a_gpu_is_refused_in_one_line(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # a driver that sees none
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": sys.executable}
    for program in ([sys.executable, SCRIPT, "--output"], ["bash", SCRIPT.with_suffix(".sh")]):
        result = subprocess.run([*program, tmp_path / "out"], capture_output=True, text=True, env=environment)
        assert result.returncode == 2
        assert re.fullmatch("error: .*run this on a machine with .*\n", result.stderr)
        assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_refused(tmp_path):
    result = check(tmp_path, tmp_path, "trian")
    assert result.returncode == 2
    assert "--parts trian: unknown; known: versions, tests, train" in result.stderr
