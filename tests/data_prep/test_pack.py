"""The packing command as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "data_prep" / "pack.py")]


def pack(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)


def test_packs_ahead_of_training(train_store_dir: Path, tmp_path: Path):
    flags = ["--store", str(train_store_dir), "--block_size", "100", "--packing_dir", str(tmp_path)]
    run = pack(*flags)
    assert run.returncode == 0, run.stderr
    store = TokenStore.open(train_store_dir)
    (folder,) = tmp_path.iterdir()
    before = folder.stat().st_mtime_ns
    packed = PackedStore.open(store, 100, packing_dir=tmp_path)
    assert (packed.folder, folder.stat().st_mtime_ns) == (folder, before)
    rows = int(packed.rows_per_shard.sum())
    longer = sum(int((store.lengths(shard) - 1 > 100).sum()) for shard in range(store.n_shards))
    for expected in (
        rf"rows +{rows:,} of 100",
        rf"waste +{packed.waste:.4%}",
        rf"cut +{longer:,} of {store.n_documents:,} documents",
        rf"checks .*{packed.n_targets:,} targets .* {rows:,} row checksums agree",
        packed.fingerprint,
    ):
        assert re.search(expected, run.stdout), run.stdout


def test_mistakes_end_in_one_line(tmp_path: Path, train_store_dir: Path):
    for flags, message in (
        (["--store", str(tmp_path)], "is not a token store"),
        (["--store", str(train_store_dir), "--strategy", "tight"], "--strategy: 'tight' is not a choice"),
        (["--store", str(train_store_dir), "--block_size", "0"], "--block_size"),
        (["--store", str(train_store_dir), "--share", "40-10"], "--share: '40-10' is not LO-HI in percent"),
    ):
        run = pack(*flags)
        assert run.returncode == 2
        assert run.stderr.strip().splitlines()[-1].startswith("error: ")
        assert message in run.stderr
        assert "Traceback" not in run.stderr
