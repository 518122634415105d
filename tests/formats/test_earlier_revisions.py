"""What earlier revisions wrote is read by this one: on-disk formats are a promise.

`revision_1/` is a run of 6 steps on two ranks (FULL_SHARD), stopped and resumed at step 4, with its token
stores and their packings. `masked_1/` is a masked store of two conversations, of that tokenizer, in two
shards with their packing. Never write them anew: a format that changes gets a folder of its own beside them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store import masking
from lit_gpt.store.manifest import ChatFormat
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.data.numbering import Numbering
from pretrain.datapoints.files import RunLog
from pretrain.datapoints.log import DatapointLog
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import scan
from tests.pretrain.running import losses

ROOT = Path(__file__).resolve().parents[2]
LOSSES = [5.932184, 5.819345, 5.870974, 5.739940, 5.779275, 5.731597, 5.693885, 5.805706]


def run(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / command), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def earlier(tmp_path):
    """A copy to work on; the stores stay read-only, so that their packings must be read, not made."""
    shutil.copytree(Path(__file__).parent / "revision_1", tmp_path / "r")
    return tmp_path / "r"


def test_the_log_is_verified_against_the_store(earlier):
    result = run(earlier, "scripts/datapoints.py", "verify", "--run", "run", "--train_data_dir", "store")
    assert result.returncode == 0, result.stderr
    assert "6 steps, 24 rows, 40 segments" in result.stdout
    logged = [group.loss for group in scan(Replay(earlier / "run"))]
    assert sum(map(len, logged)) == 40
    assert all(np.isnan(losses).all() for losses in logged)


def test_a_log_of_format_1_is_continued_in_format_2_with_the_parts_it_has(earlier):
    folder = earlier / "run/datapoints"
    parts = {part.name: part.read_bytes() for part in folder.glob("part-*")}
    [period] = RunLog(earlier / "run").periods
    assert (period.name, period.numbering) == ("", Numbering(4))
    DatapointLog(earlier / "run", period.data, numbering=Numbering(4)).discard_after(6, was_logged=True)
    assert json.loads((folder / "data.json").read_text()) == {
        "format_version": 2,
        "segments": [
            {
                "name": "",
                "first_step": 1,
                "steps_before": 0,
                "global_batch_size": 4,
                "data": period.data,
            }
        ],
    }
    assert {part.name: part.read_bytes() for part in folder.glob("part-*")} == parts
    assert list(Replay(earlier / "run", [str(earlier / "store")]).verify())[-1].messages == []


def test_a_step_comes_back_as_text(earlier):
    result = run(
        earlier, "scripts/datapoints.py", "step", "--run", "run", "--train_data_dir", "store", "--step", "6"
    )
    assert result.returncode == 0, result.stderr
    assert "sample/" in result.stdout
    assert "Wasser" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_run_is_resumed(earlier, devices):
    """With the packing it has, on as many ranks and on fewer, to the losses that the earlier revision had."""
    packing = next((earlier / "store").glob("packing-*/shard-00000.rows"))
    written = packing.stat().st_mtime_ns
    result = run(
        earlier, "pretrain/tinyllama_fabric.py", "--model_name=tiny.yaml", "--train_data_dir", "store",
        "--val_data_dir=val", "--out_dir=run", "--accelerator=cpu", f"--devices={devices}",
        "--global_batch_size=4", "--micro_batch_size=2", "--max_steps=8", "--warmup_steps=1",
        "--learning_rate=1e-2", "--min_lr=1e-3", "--save_step_interval=2", "--keep_last=1", "--resume=true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert losses(earlier / "run") == pytest.approx(LOSSES, abs=1e-4)
    assert packing.stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_checkpoint_is_converted(earlier):
    result = run(
        earlier, "scripts/convert_lit_checkpoint.py", "--checkpoint", "run/iter-00000006-ckpt.pth",
        "--output", "hf", "--tokenizer_path", "store/tokenizer", "--check",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


ANSWERED = [
    [("Was ist Wasser?\n", False), ("Ein Stoff.", True)],
    [("Und Wald?\n", False), ("Viele Bäume.", True)],
]


def test_a_masked_store_is_read_with_the_packing_it_has(tmp_path):
    folder = shutil.copytree(Path(__file__).parent / "masked_1", tmp_path / "chat")
    [packing] = folder.glob("packing-*")
    for path in (folder, packing):
        path.chmod(0o555)
    store = TokenStore.open(folder)
    store.verify()
    assert store.fingerprint == "2638d53c25f06d2012ddb2604bc24aea976f2059a7ef5ea7235271b87f4422b3"
    assert (store.masked, store.manifest.chat) == (True, ChatFormat("{{ messages[0].content }}", 2))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for shard, pieces in enumerate(ANSWERED):
        text = "".join(f"⟦{text}⟧" if target else text for text, target in pieces)
        assert masking.mark_targets(store.document_tokens(shard, 0), tokenizer.decode) == text
    packed = PackedStore.open(store, 64)
    assert (packed.folder, packed.fingerprint) == (
        packing,
        "0a1fcbfa7372edaf3354cbfa3845fe4a300f7c245562550cb31f50c213c2e4ce",
    )
    packed.verify()
    assert [packed.loss_targets(shard).tolist() for shard in (0, 1)] == [[11], [13]]
    assert packed.n_targets == store.n_targets
