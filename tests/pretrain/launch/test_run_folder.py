"""The folder of a run: what is in its way is named at the start."""

import os

import pytest

from lit_gpt.cli import InputError
from pretrain.launch import run_folder
from pretrain.options import TrainOptions
from tests.pretrain.running import open_run

KINDS = {
    "folder": lambda path: (path / "full").mkdir(parents=True),
    "fifo": os.mkfifo,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "file": lambda path: path.write_text("mine"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("lock", "config.yaml", "requeue", "done") for kind in list(KINDS)[:3]),
        *(("datapoints", kind) for kind in ("fifo", "dangling", "file")),
    ],
)
def test_another_kind_of_file_is_refused_and_left(tmp_path, name, kind):
    KINDS[kind](tmp_path / name)
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    options = TrainOptions(train_data_dir=["x"], out_dir=str(tmp_path), resume="auto")
    with pytest.raises(InputError, match=f"{name} is no (file|folder), which a run needs there: move it"):
        run_folder.prepare(options)
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before
    KINDS["folder"](tmp_path / "fine" / "datapoints")
    run_folder.prepare(TrainOptions(train_data_dir=["x"], out_dir=str(tmp_path / "fine"))).close()


@pytest.mark.parametrize("kind", ["file", "dangling", "fifo"])
def test_tensorboard_in_the_way_stops_nothing(tmp_path, train_store_dir, kind):
    (tmp_path / "run").mkdir()
    KINDS[kind](tmp_path / "run" / "tensorboard")
    open_run(tmp_path / "run", train_store_dir, max_steps=2, warmup_steps=1, save_step_interval=2).fit()
    assert (tmp_path / "run" / "done").is_file()
