"""The training command, run for real: killed, stopped, resumed, refused."""

import json
import os
import shutil
import signal

import pytest

from lit_gpt.checkpoint.folder import list_checkpoints
from lit_gpt.cli import InputError
from pretrain.monitor.metrics import read_metrics, read_validation
from tests.pretrain.running import (
    WANDB_STAND_IN,
    assert_same_checkpoint,
    losses,
    open_run,
    start,
    steps_logged,
    train,
    wait_until,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train_store_dir, val_store_dir):
    """40 steps without a break. The end does not wait for Weights & Biases, whose upload may hang."""
    out_dir, package = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("package")
    (package / "wandb.py").write_text(WANDB_STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        result = train(out_dir, train_store_dir, val_data_dir=val_store_dir, wandb_project="test")
    assert result.returncode == 0, result.stderr
    assert "wandb ends, done is there: True" in result.stdout
    return out_dir


def test_a_run_learns_validates_and_says_that_it_is_done(straight):
    values = losses(straight)
    assert len(values) == 40
    assert sum(values[-5:]) / 5 < sum(values[:5]) / 5 - 0.5
    assert json.loads((straight / "done").read_text())["step"] == 40
    assert [step for step, _ in list_checkpoints(straight)] == [20, 40]
    assert list((straight / "tensorboard").iterdir())
    lines = read_validation(straight / "validation.csv")
    assert [(line.step, line.stage, line.store) for line in lines] == [(n, "", "val") for n in (0, 20, 40)]
    assert lines[-1].loss == read_metrics(straight / "metrics.csv")[-1]["val_loss"]
    assert lines[-1].bits_per_byte < lines[0].bits_per_byte


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(straight, tmp_path, train_store_dir, val_store_dir):
    process = start(tmp_path, train_store_dir, val_data_dir=val_store_dir)
    wait_until(lambda: steps_logged(tmp_path) >= 25 and bool(list_checkpoints(tmp_path)), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20]

    result = train(tmp_path, train_store_dir, val_data_dir=val_store_dir, resume="auto")
    assert result.returncode == 0, result.stderr
    assert "at step 20" in result.stdout
    assert losses(tmp_path) == losses(straight)
    assert_same_checkpoint(tmp_path, straight, 40)
    assert (tmp_path / "validation.csv").read_text() == (straight / "validation.csv").read_text()


@pytest.mark.slow
def test_a_signal_saves_marks_and_exits_with_0(straight, tmp_path, train_store_dir, val_store_dir):
    """One after another: each start continues where the one before was stopped."""
    flags = {"val_data_dir": val_store_dir, "save_step_interval": 1000, "resume": "auto"}
    stopped_at = 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process = start(tmp_path, train_store_dir, **flags)
        wait_until(lambda step=stopped_at: steps_logged(tmp_path) > step, process)
        assert not (tmp_path / "requeue").exists()
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        marker = json.loads((tmp_path / "requeue").read_text())
        assert marker["reason"] == number.name
        assert stopped_at < marker["step"] < 40
        stopped_at = marker["step"]

    result = train(tmp_path, train_store_dir, **flags | {"resume": "true"})
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "requeue").exists()
    assert losses(tmp_path) == losses(straight)
    assert_same_checkpoint(tmp_path, straight, 40)
    assert (tmp_path / "validation.csv").read_text() == (straight / "validation.csv").read_text()


@pytest.mark.slow
def test_the_time_limit_saves_and_marks(tmp_path, train_store_dir):
    """A busy machine may not come to a first step in time, and has nothing to save then: it gets longer."""
    for seconds in (10, 40, 160):
        out_dir = tmp_path / str(seconds)
        result = train(out_dir, train_store_dir, max_time=f"00:00:{seconds}", max_steps=100_000)
        assert result.returncode == 0, result.stderr
        if list_checkpoints(out_dir):
            break
    marker = json.loads((out_dir / "requeue").read_text())
    assert marker["reason"] == "max_time"
    assert list_checkpoints(out_dir)[-1][0] == marker["step"] > 0


def test_a_complete_run_says_so_and_changes_nothing(straight, tmp_path, train_store_dir, capsys):
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    files = [copy / "metrics.csv", copy / "validation.csv"]
    before = [file.read_text() for file in files]
    open_run(copy, train_store_dir, resume="auto").fit()
    assert "already complete" in capsys.readouterr().out
    assert (copy / "done").exists()
    assert [file.read_text() for file in files] == before


def test_both_sides_of_a_border_are_validated_once(tmp_path, train_store_dir, val_store_dir):
    """Also where the run was killed after the border, and begins the second stage again."""
    flags = {
        "stages": [{"name": "a", "steps": 2}, {"name": "b", "steps": 2, "block_size": 64}],
        "val_data_dir": [f"de={val_store_dir}", f"train={train_store_dir}"],
        "eval_iters": 1,
        "max_steps": None,
        "warmup_steps": 0,
    }
    open_run(tmp_path, train_store_dir, **flags).fit()
    lines = read_validation(tmp_path / "validation.csv")
    assert [(line.step, line.stage, line.store) for line in lines] == [
        (step, stage, store)
        for step, stage in [(0, "a"), (2, "a"), (2, "b"), (4, "b")]
        for store in ("de", "train")
    ]
    text = (tmp_path / "validation.csv").read_text()
    shutil.rmtree(list_checkpoints(tmp_path)[-1][1])
    open_run(tmp_path, train_store_dir, resume="auto", **flags).fit()
    assert (tmp_path / "validation.csv").read_text() == text


def refusal(out_dir, store, **flags):
    """The one line of a run that must be refused."""
    result = train(out_dir, store, **flags)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_a_store_that_is_none_is_refused(tmp_path, train_store_dir):
    assert "missing" in refusal(tmp_path / "out", tmp_path / "missing")
    broken = tmp_path / "store"
    shutil.copytree(train_store_dir, broken)
    (broken / "manifest.json").unlink()
    with pytest.raises(InputError, match="manifest"):
        open_run(tmp_path / "out", broken)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"resume": "true"}, r"no valid checkpoint in .*/out"),
        ({"accelerator": "cuda"}, "cuda"),
        ({"float8": True}, "--float8"),
        ({"attention": "fa3"}, "fa3"),
        ({"resume": "CHECKPOINT", "model_name": "tiny_3M"}, "model"),
        ({"resume": "CHECKPOINT", "seed": 1}, "seed"),
        ({"resume": "CHECKPOINT", "global_batch_size": 8}, "global_batch_size"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(straight, tmp_path, train_store_dir, flags, message):
    if flags.get("resume") == "CHECKPOINT":
        flags = flags | {"resume": str(list_checkpoints(straight)[-1][1])}
    with pytest.raises(InputError, match=message):
        open_run(tmp_path / "out", train_store_dir, **flags)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path, train_store_dir):
    shape = tmp_path / "small_vocabulary.yaml"
    fields = {"n_layer": 1, "n_head": 2, "n_query_groups": 1, "n_embd": 32, "intermediate_size": 64}
    shape.write_text(json.dumps({"name": "small", "block_size": 64, "vocab_size": 100} | fields))
    with pytest.raises(InputError, match="vocabulary"):
        open_run(tmp_path / "out", train_store_dir, model_name=str(shape))


def test_a_folder_with_checkpoints_is_not_begun_anew(straight, train_store_dir):
    with pytest.raises(InputError, match="--resume auto"):
        open_run(straight, train_store_dir)
