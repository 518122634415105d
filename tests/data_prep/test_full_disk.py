"""The data commands on a disk that becomes full, and is made larger: one line, and they continue."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from tests.data_prep.corpus_tools import write_jsonl
from tests.german import german_texts
from tests.pretrain.running import ROOT, environment
from tests.pretrain.saving import mounted

pytestmark = pytest.mark.slow


def run(name: str, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"data_prep/{name}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


def assert_one_line(done: subprocess.CompletedProcess[str], disk: Path) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = errors
    assert f"{disk}/" in line
    assert "No space left on device" in line


def contents(folder: Path) -> dict[str, bytes]:
    """What does not tell how long it took."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    changing = ("logs/", "stats.json", "report.md", "options.json", "settings.json", "origin.json")
    kept = {name: path for name, path in found.items() if not any(part in name for part in changing)}
    return {name: path.read_bytes() for name, path in kept.items() if not name.endswith("manifest.json")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four files that hardly compress, 3 MB in all."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(5)
    texts = german_texts(600, seed=5)
    records = [
        {
            "id": f"d{n}",
            "text": f"{next(texts)}\n" + "\n".join(f"{draw.getrandbits(480):x}" for _ in range(40)),
        }
        for n in range(600)
    ]
    return [write_jsonl(folder / f"{n}.jsonl", records[n::4]) for n in range(4)]


COMMANDS = {
    "clean": ["--preset", "none"],
    "dedup": [],
    "minhash": ["--bands", "4", "--hashes_per_band", "4"],
    "tokenize_corpus": ["--val_fraction", "0.2", "--max_shard_tokens", "300000", "--snapshot_seconds", "0"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_continues_when_there_is_room(name, tmp_path, corpus, tokenizer_dir):
    def flags(output: Path) -> list[object]:
        more = (
            ["--tokenizer", tokenizer_dir, "--val_output", output / "val"]
            if name == "tokenize_corpus"
            else []
        )
        output = output / "train" if more else output
        return ["--input", *corpus, "--output", output, "--workers", 2, *COMMANDS[name], *more]

    assert run(name, *flags(tmp_path / "whole")).returncode == 0
    whole = contents(tmp_path / "whole")
    size = sum(map(len, whole.values()))
    with mounted(tmp_path / "disk", "size=64k") as disk:
        for kilobytes in [64, size // 4000, size // 1500]:
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
            assert_one_line(run(name, *flags(disk / "out")), disk)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        done = run(name, *flags(disk / "out"))
        assert done.returncode == 0, done.stderr
        assert contents(disk / "out") == whole


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_train_tokenizer(kind, tmp_path, corpus):
    flags = ["--input", *corpus, "--vocab_size", "2048", "--type", kind]
    with mounted(tmp_path / "disk", "size=32k") as disk:
        assert_one_line(run("train_tokenizer", *flags, "--output", disk / "tokenizer"), disk)
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        done = run("train_tokenizer", *flags, "--output", disk / "tokenizer")
        assert done.returncode == 0, done.stderr
        assert Tokenizer.load(disk / "tokenizer").vocab_size == 2048


def test_a_read_only_disk(tmp_path, corpus):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        done = run("clean", "--input", *corpus, "--output", disk / "out")
    assert done.returncode == 2
    where = f"{disk}/out cannot be written"
    assert done.stderr == f"error: {where}: Read-only file system; give another --output\n"


def test_pack(tmp_path, train_store_dir):
    with mounted(tmp_path / "disk", "size=8k") as disk:
        flags = ["--store", train_store_dir, "--block_size", "64", "--packing_dir", disk / "packings"]
        assert_one_line(run("pack", *flags), disk)
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert run("pack", *flags).returncode == 0
        PackedStore.open(TokenStore.open(train_store_dir), 64, "best_fit", disk / "packings").verify()


def test_prepare(tmp_path, corpus):
    flags = ["--input", *corpus, "--preset", "none", "--vocab_size", "512", "--val_fraction", "0.2"]
    flags += ["--block_size", "128", "--workers", "1"]
    assert run("prepare", *flags, "--output", tmp_path / "whole").returncode == 0
    whole = contents(tmp_path / "whole")
    with mounted(tmp_path / "disk", "size=1m") as disk:
        for megabytes in [1, 3]:
            subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(disk)], check=True)
            assert_one_line(run("prepare", *flags, "--output", disk / "out"), disk)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        done = run("prepare", *flags, "--output", disk / "out")
        assert done.returncode == 0, done.stderr
        assert contents(disk / "out").keys() == whole.keys()
        manifests = [folder / "train/manifest.json" for folder in (disk / "out", tmp_path / "whole")]
        shards = [json.loads(path.read_text())["shards"] for path in manifests]
        assert [shard["n_tokens"] for shard in shards[0]] == [shard["n_tokens"] for shard in shards[1]]
