"""The real training command on a disk that becomes full, and is made larger."""

import subprocess

import pytest

from lit_gpt.checkpoint import list_checkpoints, verify
from tests.pretrain.running import steps_logged, train
from tests.pretrain.saving import mounted


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_disk_that_becomes_full(tmp_path, train_store_dir, policy):
    flags = {"max_steps": 100, "save_step_interval": 10, "eval_step_interval": 0, "keep_last": 0}
    with mounted(tmp_path / "disk", "size=5m") as disk:
        run = disk / "run"
        result = train(run, train_store_dir, on_save_error=policy, **flags)
        saved = [step for step, folder in list_checkpoints(run) if verify(folder)]
        assert saved in ([10], [10, 20])
        assert result.returncode == 2
        assert f"checkpoint of step {saved[-1] + 10} was not saved" in result.stderr
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        # It stopped soon, or went on to its end; there the last save met the full disk as well.
        assert (steps_logged(run) < 100) == (policy == "stop")
        assert not (run / "done").exists()

        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert train(run, train_store_dir, resume="auto", **flags).returncode == 0
        assert list_checkpoints(run)[-1][0] == 100
