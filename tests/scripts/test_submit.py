"""scripts/submit.py without a cluster: its checks, its plan, and what it would submit."""

import dataclasses
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from lit_gpt.cli import EXIT_BAD_INPUT, InputError, parse_options
from pretrain.data.training_data import TrainingData
from pretrain.launch.examine import examine
from pretrain.monitor.epochs import Epochs
from pretrain.options import DataOptions, TrainOptions
from pretrain.stages.options import resolve_stages
from pretrain.stages.stage import open_stages
from scripts import submit
from scripts.bench import measurement
from tests.pretrain.running import ROOT


@pytest.fixture
def options(tmp_path, train_store_dir, val_store_dir) -> TrainOptions:
    return TrainOptions(
        train_data_dir=[str(train_store_dir)],
        val_data_dir=[str(val_store_dir)],
        out_dir=str(tmp_path / "run"),
        model_name="tiny_100K",
        global_batch_size=64,
        micro_batch_size=4,
        devices=4,
        num_nodes=2,
        max_steps=1000,
        save_step_interval=100,
    )


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """A machine with a virtual environment and without sbatch."""
    monkeypatch.setenv("VENV", sys.prefix)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)


def submission(options: TrainOptions, **more) -> submit.SubmitOptions:
    return submit.SubmitOptions(**options.to_dict(), **more)


def test_the_plan_counts(options):
    estimate = examine(options)
    epochs = Epochs.of(TrainingData.open(DataOptions(options.train_data_dir, 128)), 64)
    plan = examine(options)
    [estimated], [stage] = estimate.stages, plan.stages
    assert estimated.epochs.passes(1000) == pytest.approx(epochs.passes(1000), rel=0.02)
    assert stage.epochs.passes(1000) == epochs.passes(1000)  # of the packing, now that there is one
    assert stage.tokens_per_step == 64 * 128
    assert plan.checkpoints_kept == 4  # keep_last 3 and the one being written
    assert plan.hours(tokens_per_second=128.0) == [pytest.approx(1000 * 64 / 8 / 3600)]
    lines = dict(plan.lines(device_gib=80))
    assert "starts at step 1" in lines["run"]
    assert lines["steps"].startswith(f"1,000 steps of 64 rows, {epochs.tokens(1000):,} tokens, ")
    assert "is read 51.1 times" in dict(plan.warnings())["warning"]
    assert "weights split over 8; 8 row(s) a step and device, 4 at a time" in lines["job"]


def test_the_plan_goes_on_from_checkpoints(options, tmp_path):
    (tmp_path / "run/iter-00000400-ckpt.pth").mkdir(parents=True)
    plan = examine(options)
    assert plan.first_step == 400
    assert plan.hours(tokens_per_second=128.0) == [pytest.approx(600 * 64 / 8 / 3600)]
    assert "continues at step 401" in dict(plan.lines(device_gib=80))["run"]


def test_all_mistakes_are_named_in_one_line(options, tmp_path):
    wrong = {
        "global_batch_size": 63,
        "train_data_dir": [str(tmp_path)],
        "resume": "true",
        "model_name": "tiny_1",
    }
    file = tmp_path / "options.yaml"
    settings = options.to_dict() | wrong
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    command = [sys.executable, ROOT / "scripts/submit.py", "--config", file, "--dry_run"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == EXIT_BAD_INPUT
    assert result.stderr.count("\n") == 1
    for part in ("63 is not divisible by 8", "manifest", "--resume true", "tiny_1"):
        assert part in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharding_strategy": "NO_SHARD"}, "lower --micro_batch_size"),
        ({"keep_last": 0, "save_step_interval": 1, "max_steps": 10**6}, "make room"),
    ],
)
def test_too_little_room_is_refused(options, changes, message):
    options = dataclasses.replace(options, model_name="LLaMmlein_7B", **changes)
    with pytest.raises(InputError, match=message):
        submit.main(submission(options, dry_run=True))


def test_a_dry_run_writes_nothing(options, tmp_path, capsys):
    submit.main(submission(options, dry_run=True, tokens_per_second=1000.0))
    printed = capsys.readouterr().out
    assert "sbatch --job-name=llammlein-run --nodes=2 --ntasks-per-node=4 --gpus-per-node=4" in printed
    assert "1 start(s) of 24:00:00" in printed
    assert not (tmp_path / "run").exists()


def test_without_sbatch_the_submission_is_left_to_run(options, tmp_path, capsys):
    submit.main(submission(options, chain=3))
    script = tmp_path / "run/submit.sh"
    assert f"bash {script}" in capsys.readouterr().out
    assert "seq 3" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    submitted = yaml.safe_load((tmp_path / "run/submitted.yaml").read_text())
    assert TrainOptions(**submitted) == options


@pytest.fixture
def staged(options, tmp_path, train_store_dir, val_store_dir) -> TrainOptions:
    """Read from a file, as a user's: `end` continues the rows of `begin`, `long` has rows of its own."""
    train, val = str(train_store_dir), str(val_store_dir)
    run = {"model_name": "tiny_100K", "out_dir": options.out_dir, "val_data_dir": [f"de={val}"], "stages": [
        {"name": "begin", "steps": 7, "train_data_dir": [f"{train}:0.7", f"{val}:0.3"], "block_size": 64,
         "learning_rate": 3e-5, "min_lr": 1e-6, "save_step_interval": 3},
        {"name": "long", "steps": 2, "train_data_dir": [f"{train}@0-40"], "warmup_steps": 1,
         "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "block_size": 128},
        {"name": "end", "steps": 30, "train_data_dir": [val], "block_size": 64, "optimizer": "fresh",
         "trainable": ["lm_head"]},
    ], "global_batch_size": 16, "micro_batch_size": 4, "accelerator": "cpu",
        "rope_scaling": {"rope_type": "linear", "factor": 2}}  # fmt: skip
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump(run))
    return parse_options(TrainOptions, ["--config", str(file)])


def test_the_plan_of_stages_is_what_the_trainer_opens(staged):
    estimate = examine(staged)
    opened = open_stages(resolve_stages(staged))
    plan = examine(staged)
    for stage, trained, before_packing in zip(plan.stages, opened, estimate.stages, strict=True):
        steps = trained.schedule.max_steps
        assert (stage.config, stage.schedule) == (trained.config, trained.schedule)
        assert stage.epochs.passes(steps) == trained.epochs.passes(steps)
        assert before_packing.epochs.passes(steps) == pytest.approx(stage.epochs.passes(steps), rel=0.1)
        assert stage.remarks == trained.repeats
    dealt = opened[0].data.rows(np.arange(7 * 16)).store  # counted one by one
    n_rows = opened[2].data.order.rows_per_epoch(0)
    assert plan.stages[2].epochs.passes(30) == [((dealt == 1).sum() + 30 * 16) / n_rows]


def test_stages_are_a_table(staged, capsys, tmp_path):
    open_stages(resolve_stages(staged))
    submit.main(submission(staged, dry_run=True, tokens_per_second=4.0))
    lines = capsys.readouterr().out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("stage "))
    cells = [re.split(r"  +", line.strip()) for line in lines[begin : begin + 5]]
    assert [line[:3] for line in cells[1:4]] == [
        ["begin", "1-7", "16 x 64"], ["long", "8-9", "16 x 128"], ["end", "10-39", "16 x 64"]
    ]  # fmt: skip
    tokens = [int(line[3].replace(",", "")) for line in cells[1:4]]
    assert cells[4] == ["total", "1-39", f"{sum(tokens):,}", f"{(7 + 2 * 2 + 30) * 1024 / 4 / 3600:.1f}"]
    assert [line[5] for line in cells[1:4]] == ["0.5", "0.3", "2.1"]
    assert cells[2][6] == "1 steps of warm-up from 1e-06 to 0.0004, then cosine to 4e-05"
    rest = "\n".join(lines)
    assert "rows of 64/128" in rest
    assert "16 row(s) a step and device" in rest
    assert "warning  stage long: documents repeat: " in rest
    assert re.search("memory .* in stage long$", rest, re.M)
    assert not (tmp_path / "run").exists()


def test_submitted_stages_are_read_back(staged, tmp_path):
    resolved = resolve_stages(staged)
    submit.main(submission(staged))
    again = parse_options(TrainOptions, ["--config", str(tmp_path / "run/submitted.yaml")])
    assert resolve_stages(again) == resolved
    words = shlex.split(shlex.join(submit.training_command(submission(staged))))
    here = parse_options(TrainOptions, words[2:])
    assert resolve_stages(dataclasses.replace(here, resume=None)) == resolved


def test_a_plan_of_stages_goes_on_in_one_of_them(staged, tmp_path):
    (tmp_path / "run/iter-00000008-ckpt.pth").mkdir(parents=True)
    plan = examine(staged)
    assert "continues at step 9, stage long" in dict(plan.lines(device_gib=80))["run"]
    hours = [0, 1 * 16 * 128 / 3600, 30 * 16 * 64 / 3600]
    assert plan.hours(tokens_per_second=1.0) == pytest.approx(hours)
    assert plan.longest.name == "end"


def test_mistakes_of_all_stages_are_named_before_anything_is_submitted(staged, tmp_path):
    def refused(*changes, **run):
        tables = [table | change for table, change in zip(staged.stages, changes, strict=True)]
        with pytest.raises(InputError) as caught:
            submit.main(submission(dataclasses.replace(staged, stages=tables, **run)))
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    train = staged.stages[1]["train_data_dir"][0].partition("@")[0]
    said = refused({"train_data_dir": [str(tmp_path)]}, {}, {"trainable": ["lm_haed"]})
    assert re.search("stage begin: .* manifest.*; stage end: .*did you mean lm_head", said)
    said = refused({}, {"train_data_dir": [f"{train}@0-0.0000001"]}, {"train_data_dir": [f"{train}:0"]})
    assert re.search("stage long: .* has no rows.*; stage end: .* has weight 0", said)
    said = refused(
        {}, {"train_data_dir": [f"{train}:1", f"{train}:2"]}, {"steps": 0, "n_layer": 3}, out_dir=""
    )
    assert re.search(
        "^stages begin, long: --out_dir is missing.*; stage end: steps: .*; n_layer: no such", said
    )
    other = tmp_path / "other"
    shutil.copytree(train, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": "0" * 64}))
    said = refused({}, {}, {"train_data_dir": [str(other)]})
    assert re.search("^stage end: .*other was made with another tokenizer than", said)
    said = refused({}, {"train_data_dir": [f"{train}:1", f"{train}:2"]}, {})
    assert re.search("^stage long: .* is named twice", said)


@pytest.mark.parametrize(
    ("place", "message"),
    [({"VENV": "/nowhere"}, "VENV=/nowhere"), ({"VENV": "", "IMAGE": "/no.sif"}, "/no.sif does not exist")],
)
def test_a_missing_environment_is_named(options, monkeypatch, place, message):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        submit.main(submission(options))
    with pytest.raises(InputError, match=r"--train_data_dir is missing.* --out_dir is missing"):
        submit.main(submission(dataclasses.replace(options, train_data_dir=[], out_dir="")))


def test_a_dry_run_on_a_login_node_needs_no_image(tmp_path, train_store_dir):
    """With sbatch and without image or environment: the plan is printed, and what is missing with it."""
    (tmp_path / "sbatch").touch(mode=0o755)
    flags = {"model_name": "tiny_100K", "train_data_dir": train_store_dir, "out_dir": tmp_path / "run"}
    flags |= {"global_batch_size": 64, "max_steps": 10, "accelerator": "cpu"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "IMAGE": "/no.sif"}
    command = [sys.executable, str(ROOT / "scripts/submit.py"), *words, "--dry_run"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["submits"].startswith("sbatch --job-name=llammlein-run")
    assert lines["note"].startswith("before submitting: IMAGE=/no.sif does not exist; build it")
    assert not (tmp_path / "run").exists()


def test_help_groups_speak_of_submitting(capsys):
    with pytest.raises(SystemExit):
        parse_options(submit.SubmitOptions, ["--help"])
    assert re.findall(r"^(\w.*):$", capsys.readouterr().out, re.M) == [
        "options",
        "Training, as in pretrain/tinyllama_fabric.py",
        "Which stores are read, and in what order",
    ]


def test_without_a_cluster_the_plan_has_hours_of_a_measured_step(tmp_path, train_store_dir):
    """The real command, with neither sbatch nor container: the step is run here, and nothing is written."""
    flags = ["--model_name", "tiny_100K", "--accelerator", "cpu", "--max_epochs", "0.5"]
    flags += ["--global_batch_size", "64", "--micro_batch_size", "4", "--out_dir", str(tmp_path / "run")]
    flags += ["--train_data_dir", str(train_store_dir)]
    command = [sys.executable, str(ROOT / "scripts/submit.py"), *flags, "--dry_run", "--measure"]
    environment = {"PATH": str(tmp_path), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert re.search(r"0\.5\d epochs; one epoch = [\d.]+ steps", lines["steps"])
    found = re.fullmatch(
        r"(.*) h at ([\d,]+) tokens/s on CPU, 1 thread\(s\), measured over 12 step\(s\), peak memory .*",
        lines["time"].partition(":")[0],
    )
    assert found is not None, lines["time"]
    assert "GiB a device" in lines["memory"]
    assert "checkpoint(s) of" in lines["disk"]
    assert not (tmp_path / "run").exists()
    here = shlex.split(lines["or"].removeprefix("here "))
    trained = parse_options(TrainOptions, here[2:])
    assert trained == dataclasses.replace(parse_options(TrainOptions, flags), resume="auto")


@pytest.mark.slow
def test_what_cannot_be_measured_is_said(options, monkeypatch):
    """The measuring process runs out of memory."""
    monkeypatch.setattr(measurement, "TIME_LIMIT", "00:00:20")
    limited = dataclasses.replace(options, devices=1, num_nodes=1, accelerator="cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
    try:
        with pytest.raises(measurement.NotMeasured, match="did not run here"):
            measurement.measure(limited)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
