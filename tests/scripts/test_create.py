"""scripts/create.sh: one checkpoint or all of a run, as the original's users call it."""

import subprocess
import sys

import pytest

from tests.pretrain.running import ROOT, environment
from tests.scripts.checkpoints import write_checkpoint


def create(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts/create.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment() | {"PYTHON": sys.executable},
    )


@pytest.mark.slow
def test_all_of_a_run_but_what_is_done_or_damaged(tmp_path, tokenizer_dir):
    run = tmp_path / "run"
    run.mkdir()
    for step in (10, 20, 30):
        write_checkpoint(run / f"iter-{step:08d}-ckpt.pth", step=step)
    (run / "iter-00000010-ckpt.pth/model/rank-00000-000.safetensors").unlink()
    (tmp_path / "hf/iter-00000020").mkdir(parents=True)
    done = create("--all", run, tmp_path / "hf", tokenizer_dir, "--dtype", "bfloat16")
    assert done.returncode == 2
    assert "rank-00000-000.safetensors: missing" in done.stderr
    assert "hf/iter-00000020 already exists" in done.stdout
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["iter-00000020", "iter-00000030"]
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "hf/iter-00000030/config.json").read_text()


@pytest.mark.slow
def test_one_checkpoint_by_a_path_with_spaces(tmp_path, tokenizer_dir):
    folder = tmp_path / "my run"
    folder.mkdir()
    done = create(write_checkpoint(folder / "iter-00000100-ckpt.pth"), tmp_path / "my model", tokenizer_dir)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my model/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes a checkpoint (or --all and a run) and an output folder"),
        (["--all", "somewhere"], "takes a checkpoint"),
        (["--all", ".", "out"], "holds no checkpoint"),
    ],
)
def test_wrong_calls(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = create(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_the_head_of_the_script():
    done = create("--help")
    assert done.returncode == 0
    assert "--all RUN OUTPUT" in done.stdout
