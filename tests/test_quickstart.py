"""The README's first command, as a newcomer meets it: whole, again, interrupted, with files of one's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from data_prep.passages import PASSAGES, documents, load_registers
from lit_gpt.checkpoint.folder import list_checkpoints
from pretrain.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ["tokenizer", "data/train", "data/val", "run/done", "hf", "verified.txt", "sample.txt", "loss.png"]


def start(*arguments: str | Path, **options) -> subprocess.Popen[str]:
    """quickstart.sh in the environment of these tests, in a process group of its own like a terminal's."""
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "quickstart.sh"), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for_training(process: subprocess.Popen[str], out: Path) -> None:
    metrics = out / "run" / "metrics.csv"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") > 5):
        time.sleep(0.05)


def quickstart(*arguments: str | Path, **options) -> tuple[int, str, str]:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=1500)
    return process.returncode, out, err


@pytest.fixture
def small_config(tmp_path):
    """A training that takes seconds, with lines at each step so that it can be caught in the middle."""
    config = tmp_path / "small.yaml"
    config.write_text(
        "model_name: tiny_100K\naccelerator: cpu\nglobal_batch_size: 4\nmicro_batch_size: 4\n"
        "max_steps: 120\nwarmup_steps: 10\nlearning_rate: 3.0e-3\nlog_step_interval: 1\n"
        "eval_step_interval: 60\neval_iters: 2\n"
    )
    return config


@pytest.fixture
def my_files(tmp_path):
    """Two files of a user's own, compressed, in a folder with a space in its name."""
    folder = tmp_path / "my files"
    folder.mkdir()
    texts = documents(99, load_registers(PASSAGES))
    for name in ("a", "b"):
        lines = "".join(json.dumps({"content": next(texts)[1]}) + "\n" for _ in range(1500))
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return folder


def test_help_needs_nothing(tmp_path):
    code, out, err = quickstart("--help")
    assert (code, err) == (0, "")
    assert "--input" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--oops"], "unknown option --oops"),
        (["--input"], "--input names no file"),
        (["--out"], "--out names no folder"),
        (["--vocab_size", "many"], "--vocab_size many: not a number"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--out", "foreign"], "is no quickstart's"),
        (["--out", "foreign", "--fresh"], "is no quickstart's"),
        (["--out", "new", "--input", "nowhere/*.jsonl"], "names no file"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, arguments, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    code, _, err = quickstart(*arguments, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*.zst", "names no file"),
        ("folder", "folder is a folder"),
        ("paper.pdf", "paper.pdf is none of .jsonl"),
        ("p*", "paper.pdf is none of .jsonl"),
        ("table.csv", "table.csv is none of .jsonl"),
        ("empty.jsonl", "empty.jsonl is empty"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_made(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "table.csv").write_text("id,text")
    (tmp_path / "empty.jsonl").touch()
    code, out, err = quickstart("--input", tmp_path / name, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine is no failure
def test_the_whole_way_and_again(tmp_path):
    out_dir = tmp_path / "out"
    code, out, err = quickstart("--out", out_dir)
    assert code == 0, err
    assert f"Starting clean in {out_dir}" in out
    assert "Sent SIGTERM" in out
    assert "(SIGTERM); continue with --resume auto" in out
    assert "resumed from" in out
    for result in RESULTS:
        assert (out_dir / result).exists(), result
    assert [step for step, _ in list_checkpoints(out_dir / "run")][-1] == 200
    metrics = read_metrics(out_dir / "run" / "metrics.csv")
    assert [line["step"] for line in metrics] == list(range(1, 201))
    assert metrics[-1]["restart"] == 1
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 3
    assert (out_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out_dir / "sample.txt").read_text(encoding="utf-8").startswith("Es war einmal")
    assert "Traceback" not in err

    before = {file: file.stat().st_mtime_ns for file in out_dir.rglob("*")}
    code, again, err = quickstart("--out", out_dir)
    assert (code, err) == (0, "")
    assert f"Continuing in {out_dir}" in again
    assert again.count("there already") == 9
    assert {file: file.stat().st_mtime_ns for file in out_dir.rglob("*")} == before
    assert again.split("Done after")[1].split(":")[1:] == out.split("Done after")[1].split(":")[1:]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine is no failure
def test_files_of_ones_own_interrupted_and_continued(tmp_path, small_config, my_files):
    given = ("--out", "mine", "--config", small_config, "--input", "my files/*.jsonl.zst")
    run = tmp_path / "mine" / "run"

    def on_ctrl_c(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGINT)

    def only_in_the_training(process: subprocess.Popen[str]) -> None:
        """Bash forgets one that comes as a child of its own ends."""
        subprocess.run(["pkill", "-INT", "--session", str(process.pid), "-f", "tinyllama_fabric"], check=True)

    for interrupt in (on_ctrl_c, only_in_the_training):
        shutil.rmtree(run, ignore_errors=True)
        process = start(*given, cwd=tmp_path)
        wait_for_training(process, tmp_path / "mine")
        interrupt(process)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 130
        assert "interrupted; run this again to continue" in err
        ((stopped_at, _),) = list_checkpoints(run)
        assert stopped_at < 120

    code, out, err = quickstart("--out", tmp_path / "mine", "--config", small_config)
    assert code == 2, "the sample corpus is not what that folder was made from"
    assert "was made from" in err

    code, out, err = quickstart(*given, cwd=tmp_path)
    assert code == 0, err
    assert "Continuing in mine" in out
    assert f"at step {stopped_at}" in out
    assert [line["step"] for line in read_metrics(run / "metrics.csv")] == list(range(1, 121))

    process = start(*given, "--fresh", cwd=tmp_path)
    while process.poll() is None and run.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=600)
    assert "Starting clean: removing mine" in out
    assert not run.exists()
