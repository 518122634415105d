"""The commands on broken and unusual input: what is lost is said, what is unusable is refused at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from lit_gpt.store.token_store import TokenStore
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import documents, stats, write_jsonl
from tests.pretrain.running import ROOT, environment

COMMANDS = {
    "clean": ["--preset", "none", "--workers", "1"],
    "dedup": ["--workers", "1"],
    "minhash": ["--workers", "1"],
    "tokenize_corpus": ["--workers", "1"],
}


def run(
    name: str, tokenizer: Path, files: list[Path], output: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"data_prep/{name}.py"), "--input", *map(str, files)]
    command += ["--output", str(output), *COMMANDS[name], *flags]
    if name == "tokenize_corpus":
        command += ["--tokenizer", str(tokenizer)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


@pytest.fixture
def truncated(tmp_path: Path) -> list[Path]:
    """A complete file, and half of one of 2,000 documents."""
    texts = list(german_texts(2000, seed=3))
    records = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    data = zstandard.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    (tmp_path / "half.jsonl.zst").write_bytes(data[: len(data) // 2])
    return [write_jsonl(tmp_path / "whole.jsonl", records[:10]), tmp_path / "half.jsonl.zst"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_half_a_file_is_lost_aloud(name: str, tmp_path: Path, truncated: list[Path], tokenizer_dir: Path):
    stopped = run(name, tokenizer_dir, truncated, tmp_path / "a", "--max_bad_lines", "100")
    assert stopped.returncode == 2
    assert "more than 100 unusable lines, the last " in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = run(name, tokenizer_dir, truncated, tmp_path / "b", "--max_bad_lines", "2000")
    assert done.returncode == 0, done.stderr
    [loss] = [line for line in done.stdout.splitlines() if line.startswith(f"lost: {truncated[1]}:")]
    assert " lines, " in loss
    assert " bytes are missing, about " in loss
    assert "unreadable from here on" in done.stdout
    if name == "tokenize_corpus":
        assert TokenStore.open(tmp_path / "b").manifest.provenance["losses"] == [loss.removeprefix("lost: ")]
    else:
        assert stats(tmp_path / "b")["losses"] == [loss.removeprefix("lost: ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_other_fields_are_named_by_options(name: str, tmp_path: Path, tokenizer_dir: Path):
    texts = list(german_texts(30, seed=4))
    records = [{"url": f"u{number}", "body": text, "n": number} for number, text in enumerate(texts)]
    files = [write_jsonl(tmp_path / "x.jsonl", records)]
    for flags, says in [
        ([], "has the fields url, body, n, none of text, raw_content, content; name one by --text_fields"),
        (["--text_fields", "body", "--id_fields", "uri"], "none of uri; name one by --id_fields"),
    ]:
        refused = run(name, tokenizer_dir, files, tmp_path / "a", *flags)
        assert refused.returncode == 2
        assert says in refused.stderr
        assert not (tmp_path / "a").exists()
    done = run(name, tokenizer_dir, files, tmp_path / "a", "--text_fields", "body", "--id_fields", "url")
    assert done.returncode == 0, done.stderr
    if name == "tokenize_corpus":
        assert all(TokenStore.open(tmp_path / "a").find(f"u{number}") for number in range(30))
    else:
        kept = documents(tmp_path / "a/documents")
        assert {(each["id"], each["n"]) for each in kept} <= {(f"u{number}", number) for number in range(30)}
        assert kept
        assert all(each["text"].split("\n")[0] in texts[each["n"]] for each in kept)


@pytest.mark.slow
def test_fields_are_part_of_the_settings(tmp_path: Path, tokenizer_dir: Path):
    files = [
        write_jsonl(tmp_path / "x.jsonl", [{"body": text, "text": "kurz"} for text in german_texts(5, 1)])
    ]
    assert run("clean", tokenizer_dir, files, tmp_path / "a").returncode == 0
    refused = run("clean", tokenizer_dir, files, tmp_path / "a", "--text_fields", "body")
    assert refused.returncode == 2
    assert "other settings (--text_fields null -> ['body'])" in refused.stderr
