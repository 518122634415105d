"""The same bytes from any number of workers and after any kill; bad input is one line and loses nothing."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.processes import claimed
from data_prep.tokenizing.job import Options, tokenize
from data_prep.tokenizing.work import is_validation
from lit_gpt.cli import InputError
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from tests.data_prep.interrupting import at_event, contents, interrupt, quicken
from tests.processes import stat_of

pytestmark = pytest.mark.usefixtures("many_small_steps")
SCRIPT = Path(__file__).resolve().parents[2] / "data_prep" / "tokenize_corpus.py"


@pytest.fixture
def options(corpus_files: list[Path], tokenizer_dir: Path, tmp_path: Path) -> Options:
    """Small shards, a snapshot after every batch, in this process."""
    return Options(
        input=[str(file) for file in corpus_files],
        tokenizer=tokenizer_dir,
        output=tmp_path / "out" / "train",
        val_fraction=0.1,
        val_output=tmp_path / "out" / "val",
        workers=1,
        max_shard_tokens=20_000,
        snapshot_seconds=0,
    )


def elsewhere(options: Options, folder: Path, **changes: Any) -> Options:
    return replace(options, output=folder / "train", val_output=folder / "val", **changes)


def test_interrupted_now_and_then_it_leaves_the_same_bytes(options: Options, tmp_path: Path):
    tokenize(options)
    run = elsewhere(options, tmp_path / "interrupted")
    for event in (1, 20, 100, 60, 150, 10):
        sys.setprofile(at_event(event, interrupt))
        try:
            with pytest.raises(KeyboardInterrupt):
                tokenize(run)
        finally:
            sys.setprofile(None)
    tokenize(run)
    assert contents(run.output.parent) == contents(options.output.parent)


def run_until_killed(options: Options, event: int) -> None:
    quicken()
    sys.setprofile(at_event(event, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    tokenize(options)


def killed_at(options: Options, event: int) -> int | None:
    """Exit status of a process of its own that is killed at an event, or gets through before."""
    processes = multiprocessing.get_context("forkserver")  # forks from a process without threads
    processes.set_forkserver_preload(["data_prep.tokenizing.job"])
    child = processes.Process(target=run_until_killed, args=(options, event))
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.slow
def test_killed_anywhere_it_leaves_the_same_bytes(options: Options, tmp_path: Path):
    tokenize(options)
    expected = contents(options.output.parent)
    events = 1
    while True:
        run = elsewhere(options, tmp_path / f"killed-{events}")
        status = killed_at(run, events)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        tokenize(run)
        assert contents(run.output.parent) == expected, f"killed at event {events}"
        events += 13
    assert events > 300


def command(options: Options, **flags: Any) -> list[str]:
    values = {name: value for name, value in vars(options).items() if value is not None} | flags
    words = [sys.executable, str(SCRIPT)]
    for name, value in values.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


@pytest.mark.slow
def test_workers_make_no_difference_and_end_with_a_killed_parent(options: Options, tmp_path: Path):
    """Also from one big compressed file, in real processes, killed with -9 until one run gets through."""
    big = tmp_path / "big.jsonl.zst"
    lines = [line for file in options.input for line in Path(file).read_bytes().splitlines(keepends=True)]
    big.write_bytes(zstandard.ZstdCompressor().compress(b"".join(lines) * 20))
    options = replace(options, input=[str(big)], max_shard_tokens=1_000_000)
    tokenize(options)
    expected = contents(options.output.parent)
    for workers in (2, 3):
        run = elsewhere(options, tmp_path / f"workers-{workers}", workers=workers)
        delay, started = 1.5, []
        while True:
            process = subprocess.Popen(command(run), start_new_session=True, stdout=subprocess.DEVNULL)
            started.append(process.pid)
            try:
                assert process.wait(delay) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                delay *= 1.5
        assert contents(run.output.parent) == expected
        for _ in range(100):
            if not any(_in_session(pid) for pid in started):
                break
            time.sleep(0.1)
        assert not any(_in_session(pid) for pid in started)


def _in_session(session: int) -> list[int]:
    stats = {int(folder.name): stat_of(folder.name) for folder in Path("/proc").glob("[0-9]*")}
    return [pid for pid, stat in stats.items() if stat and int(stat[3]) == session and stat[0] != "Z"]


def test_finished_it_finds_nothing_to_do(options: Options, capsys: pytest.CaptureFixture[str]):
    tokenize(options)
    before = {path: path.stat().st_mtime_ns for path in options.output.parent.rglob("*")}
    first = capsys.readouterr().out
    tokenize(options)
    assert {path: path.stat().st_mtime_ns for path in options.output.parent.rglob("*")} == before
    again = capsys.readouterr().out
    assert "finished already" in again
    assert again.endswith(first)
    assert set(contents(options.output)) >= {"manifest.json", "tokenizer/tokenizer.json", "shard-00000.bin"}
    assert not list(options.output.parent.rglob("*.journal"))


def test_other_settings_or_input_are_refused_by_name(
    options: Options, corpus_files: list[Path], tmp_path: Path
):
    sys.setprofile(at_event(150, interrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenize(options)
    sys.setprofile(None)
    for state in ("unfinished", "finished"):
        if state == "finished":
            tokenize(options)
        for change in ({"val_fraction": 0.2}, {"max_shard_tokens": 7}, {"id_fields": ["key", "id"]}):
            with pytest.raises(InputError, match=f"begun with another {next(iter(change))};"):
                tokenize(replace(options, **change))
        with pytest.raises(InputError, match="begun with another input;"):
            tokenize(replace(options, input=options.input[:1]))


def test_a_damaged_or_older_snapshot_is_one_line(options: Options):
    sys.setprofile(at_event(150, interrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenize(options)
    sys.setprofile(None)
    snapshot = options.output / "unfinished.json"
    text = snapshot.read_text()
    state = json.loads(text)
    without_file = {name: value for name, value in state.items() if name != "file"}
    others = [
        {},
        state | {"page": 1},
        without_file,
        state | {"counts": [{}, {}]},
        state | {"set_aside": 3},
        [],
    ]
    for broken in [text[:-20], "", *map(json.dumps, others)]:
        snapshot.write_text(broken)
        with pytest.raises(
            InputError, match=r"unfinished\.json is damaged .* remove .*train and start again"
        ):
            tokenize(options)
    snapshot.write_text(text)
    tokenize(options)


def test_validation_is_chosen_by_id_alone(options: Options, tmp_path: Path):
    tokenize(options)
    tokenize(elsewhere(options, tmp_path / "one file", input=options.input[:1]))
    for part, chosen in (("train", False), ("val", True)):
        both, one = (
            TokenStore.open(folder / part) for folder in (options.output.parent, tmp_path / "one file")
        )
        for store in (both, one):
            for number, entry in enumerate(store.manifest.shards):
                infos = store.document_info(number, range(entry.n_documents))
                assert all(is_validation(info.id, 0.1) == chosen for info in infos)
                assert all(both.find(info.id) for info in infos)
    counts = [sum(is_validation(f"id {n}", fraction) for n in range(20_000)) for fraction in (0, 0.01, 0.5)]
    assert counts[0] == 0
    assert abs(counts[1] - 200) < 60
    assert abs(counts[2] - 10_000) < 300


def test_parquet_gives_the_tokens_of_lines(options: Options, tmp_path: Path):
    rows = [json.loads(line) for file in options.input for line in Path(file).read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=250)
    tokenize(options)
    tokenize(elsewhere(options, tmp_path / "parquet", input=[str(tmp_path / "x.parquet")]))
    for part in ("train", "val"):
        lines, parquet = (contents(folder / part) for folder in (options.output.parent, tmp_path / "parquet"))
        same = [name for name in lines if name.endswith((".bin", ".idx", ".ids"))]
        assert same
        assert {name: lines[name] for name in same} == {name: parquet[name] for name in same}


def test_what_is_skipped_is_counted_and_named(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "x.jsonl"
    good = [{"id": f"{n}", "text": f"Text {n} mit Wörtern"} for n in range(30)]
    lines = [json.dumps(line, ensure_ascii=False) for line in [*good, {"id": "empty", "text": ""}]]
    file.write_text("\n".join([*lines[:10], "{broken", *lines[10:], '{"id": 1}', "[]"]))
    tokenize(replace(options, input=[str(file)], val_fraction=0.0, val_output=None))
    store = TokenStore.open(options.output)
    provenance = store.manifest.provenance
    assert provenance["empty_documents"] == 1
    assert sum(provenance["set_aside"].values()) == 3
    names = [json.loads(line) for line in (options.output / "set_aside.jsonl").read_text().splitlines()]
    assert [each["place"] for each in names] == [f"{file}:{line}" for line in (11, 33, 34)]
    text_bytes = sum(len(line["text"].encode()) for line in good)
    counts = provenance["counts"]
    assert (counts["documents"], counts["text_bytes"], counts["words"]) == (30, text_bytes, 120)
    assert counts["tokens"] == store.n_tokens
    assert counts["tokens_per_word"] == pytest.approx((store.n_tokens - 60) / 120, abs=1e-4)
    assert counts["bytes_per_token"] == pytest.approx(text_bytes / (store.n_tokens - 60), abs=1e-4)
    out = capsys.readouterr().out
    assert "30 documents" in out
    assert "1 empty documents" in out
    assert "1 not a JSON object" in out


def test_short_documents_are_left_out_and_counted(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokenize(options)
    long = elsewhere(options, tmp_path / "long", min_tokens=200)
    tokenize(long)
    dropped = 0
    for part in ("train", "val"):
        every, kept = (
            [int(length) for shard in range(store.n_shards) for length in store.lengths(shard)]
            for store in (
                TokenStore.open(folder / part) for folder in (options.output.parent, tmp_path / "long")
            )
        )
        assert kept == [length for length in every if length >= 200]
        assert kept
        dropped += len(every) - len(kept)
    assert TokenStore.open(long.output).manifest.provenance["short_documents"] == dropped > 0
    assert f"{dropped:,} of fewer than 200 tokens" in capsys.readouterr().out
    with pytest.raises(InputError, match="begun with another min_tokens"):
        tokenize(replace(long, min_tokens=0))


def test_repeated_ids_are_said(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"id": f"d{n % 7}", "text": f"Text {n}"}) + "\n" for n in range(10)))
    tokenize(replace(options, input=[str(file)], val_fraction=0.0, val_output=None))
    assert "repeated ids: 3 documents share their id with another" in capsys.readouterr().out
    assert TokenStore.open(options.output).find("d0") == [(0, 0), (0, 7)]


@pytest.mark.slow
def test_a_document_of_ten_million_bytes(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    file = tmp_path / "x.jsonl"
    texts = ["kurz", "Ein langer Satz mit ä und ß. " * 350_000, "kurz"]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenize(replace(options, input=[str(file)], val_fraction=0.0, val_output=None))
    store, tokenizer = TokenStore.open(options.output), Tokenizer.load(options.tokenizer)
    assert [entry.n_documents for entry in store.manifest.shards] == [1, 1, 1]
    for shard, text in enumerate(texts):
        assert tokenizer.decode(store.document_tokens(shard, 0)) == text
        assert store.find(f"{file}:{shard + 1}") == [(shard, 0)]


def test_mistakes_are_one_line(options: Options, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text("{\n" * 5)
    (tmp_path / "some.jsonl").write_text('{"text": "gut"}\n' + "{\n" * 5)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "body.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input": [str(tmp_path / "nowhere*")]}, "names no file"),
        ({"input": [str(tmp_path / "some.jsonl")], "max_bad_lines": 4}, "more than 4 unusable lines"),
        ({"input": [str(tmp_path / "bad.jsonl")]}, r"no document that can be used, .*bad.jsonl:1: not JSON"),
        ({"id_fields": ["url"]}, "the fields id, none of url; name one by --id_fields"),
        ({"input": [str(tmp_path / "blank.jsonl")]}, "no document"),
        ({"input": [str(tmp_path / "body.jsonl")]}, "none of text"),
        ({"tokenizer": tmp_path}, "tokenizer.json is missing"),
        ({"val_output": None}, "go together"),
        ({"val_fraction": 0.0}, "go together"),
        ({"output": tmp_path / "bad.jsonl"}, "cannot be written"),
        ({"output": tmp_path / "full"}, "not empty"),
        ({"val_output": tmp_path / "full"}, "not empty"),
        ({"val_fraction": 1e-9}, "another --val_fraction"),
        ({"made_from": tmp_path / "nowhere.json"}, "nowhere.json is missing"),
    ]
    for number, (change, says) in enumerate(cases):
        with pytest.raises(InputError, match=says) as error:
            tokenize(replace(elsewhere(options, tmp_path / f"case-{number}"), **change))
        assert "\n" not in str(error.value)
    same = replace(options, val_output=options.output)
    with pytest.raises(InputError, match="folder of its own"):
        tokenize(same)


def test_two_runs_into_one_folder_are_refused(options: Options):
    with claimed(options.output), pytest.raises(InputError, match="another run writes into"):
        tokenize(options)
    tokenize(options)


@pytest.mark.slow
def test_the_command_ends_with_2_and_one_line(options: Options, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n')
    for flags in ({"input": [str(tmp_path / "bad.jsonl")], "workers": 2}, {"nonsense": 1}):
        done = subprocess.run(command(options, **flags), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if not line.startswith("tokenize:")]
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
