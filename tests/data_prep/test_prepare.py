"""One command leads from files of documents to packed stores that can be traced to them."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import prepare
from data_prep.duplicates import dedup, minhash
from data_prep.filters import clean
from data_prep.prepare import Options
from data_prep.report.flow import flow
from data_prep.tokenizing import job, train
from lit_gpt.cli import InputError, parse_options
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store.token_store import TokenStore
from tests.conftest import german_texts
from tests.data_prep import kept_by_kind
from tests.data_prep.corpus_tools import documents, stats, write_jsonl
from tests.data_prep.made_crawl import Crawl, by_kind, near_copy
from tests.data_prep.made_pages import BAD, DIALECTS, GOOD, KINDS

OTHERS = (clean.Options, dedup.Options, minhash.Options, job.Options, job.PackOptions, train.Options)
FLAGS = {"vocab_size": 512, "val_fraction": 0.2, "block_size": 128, "workers": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    texts = list(german_texts(240, seed=11))
    records = [{"id": f"d{number}", "text": text} for number, text in enumerate([*texts, *texts[:20]])]
    return [write_jsonl(folder / f"{n}.jsonl", records[n::3]) for n in range(3)]


def run(files, output, **options):
    prepare.main(Options(input=[str(file) for file in files], output=output, **FLAGS | options))
    return output


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, files):
    """A run that found no document for the validation store, what it printed, and its error."""
    output, printed = tmp_path_factory.mktemp("prepare") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(InputError) as error:
        run(files, output, val_fraction=1e-9, block_size=64)
    return output, printed.getvalue(), str(error.value)


@pytest.fixture(scope="module")
def prepared(stopped, files):
    with pytest.raises(InputError, match=r"--tokenizer \['byte_level', 512, 2000.0\] -> .* 600, "):
        run(files, stopped[0], vocab_size=600)
    return run(files, stopped[0])


def test_stores_without_a_document_leave_the_counts_and_a_way_on(stopped, prepared):
    output, printed, error = stopped
    assert f"no document for {output / 'val'} out of 3 files" in error
    assert "another --val_fraction" in error
    assert "clean: read 260 documents" in printed
    assert (
        printed.index("clean: ") < printed.index("lines: ") < printed.index(f"report: {output}/report.html")
    )
    settings = json.loads((prepared / "settings.json").read_text())
    assert (settings["val_fraction"], settings["block_size"]) == (0.2, 128)


def test_nothing_left_is_said_with_the_reason(tmp_path, files):
    said = r"no document is left: all 260 .*dropped, 260 of them by min_words; .*report.html"
    with pytest.raises(InputError, match=said):
        run(files, tmp_path / "out", preset="none", min_words=10**6)


def test_help_speaks_of_this_command_only(capsys):
    with pytest.raises(SystemExit):
        parse_options(Options, ["--help"])
    shown = capsys.readouterr().out
    assert Options.__doc__ in shown
    assert not any(other.__doc__.splitlines()[0].rstrip(".") in shown for other in OTHERS)


def test_a_store_can_be_traced_to_its_sources(prepared, files):
    store = TokenStore.open(prepared / "train")
    origin = store.manifest.provenance["settings"]["made_from"]
    assert [(each["path"], each["bytes"], each["sha256"]) for each in origin["inputs"]] == [
        (str(file), file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files
    ]
    assert origin["clean"]["settings"]["limits"]["min_words"] == 50
    assert origin["clean"]["read"]["documents"] == 260
    assert origin["clean"]["kept"] == stats(prepared / "clean")["kept"]
    assert origin["dedup"]["read"]["documents"] == origin["clean"]["kept"]["documents"] < 260
    assert origin["dedup"]["excluded"]["only_repeats"]["documents"] > 0
    n_documents = store.n_documents + TokenStore.open(prepared / "val").n_documents
    assert n_documents == origin["lines"]["kept"]["documents"]


def test_stores_are_packed_and_whole(prepared):
    for name in ("train", "val"):
        store = TokenStore.open(prepared / name)
        store.verify()
        before = sorted(path.name for path in store.path.iterdir())
        PackedStore.open(store, 128)
        assert sorted(path.name for path in store.path.iterdir()) == before  # the packing was there


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_rerun_has_nothing_to_do_and_another_setting_is_refused(prepared, files):
    before = snapshot(prepared)
    run(files, prepared)
    changed = {path.name for path, when in snapshot(prepared).items() if before.get(path) != when}
    assert changed == {"options.json"}
    for name, value, said in (("block_size", 64, "128 -> 64"), ("val_fraction", 0.1, "0.2 -> 0.1")):
        with pytest.raises(InputError, match=rf"other settings \(--{name} {said}\)"):
            run(files, prepared, **{name: value})


def test_an_adopted_tokenizer_counts_the_tokens_of_what_is_dropped(tmp_path, files, tokenizer_dir):
    options = {"tokenizer": tokenizer_dir, "max_tokens_per_word": 1.6, "min_similarity": 0.6}
    with pytest.raises(InputError, match="--min_similarity needs --near_duplicates"):
        run(files, tmp_path / "out", **options)
    output = run(files, tmp_path / "out", near_duplicates=True, **options)
    counted = stats(output / "clean")
    assert counted["excluded"]["max_tokens_per_word"]["documents"] > 0
    assert all(count["tokens"] for count in counted["excluded"].values())
    assert not (output / "tokenizer").exists()
    origin = TokenStore.open(output / "train").manifest.provenance["settings"]["made_from"]
    assert origin["minhash"]["settings"]["min_similarity"] == 0.6
    assert origin["minhash"]["read"] == {
        key: origin["lines"]["kept"][key] for key in ("documents", "text_bytes")
    }


@pytest.mark.slow
def test_killed_at_every_stage_it_leaves_the_same_stores(tmp_path, files, prepared):
    output = tmp_path / "out"
    command = [
        sys.executable,
        str(Path(prepare.__file__)),
        "--output",
        str(output),
        "--input",
        *map(str, files),
    ]
    for flag, value in FLAGS.items():
        command += [f"--{flag}", str(value)]
    kills = 0
    for stage in ("clean", "dedup-signatures", "dedup-drop", "lines", "origin", "tokenizer", "tokenize"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        completions = output / "logs" / stage / "completions"
        if stage.startswith(("clean", "dedup", "lines")):
            completions = output / stage.partition("-")[0] / "logs" / stage / "completions"
        while process.poll() is None and not (completions.is_dir() and os.listdir(completions)):
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 6
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name in ("train", "val"):
        ours, undisturbed = TokenStore.open(output / name), TokenStore.open(prepared / name)
        assert ours.fingerprint == undisturbed.fingerprint
        assert ours.manifest.provenance["counts"] == undisturbed.manifest.provenance["counts"]


def test_good_pages_stay_and_bad_ones_fall(tmp_path):
    """All rules at once, as before, against prepare.py; every page ends in one place."""
    pages = Crawl(seed=5).pages(kept_by_kind.SITES, kept_by_kind.PAGES)
    copies = [near_copy(page) for page in pages if page["id"].startswith("prose/")]
    batches = (pages[0::2], pages[1::2], copies)
    files = [write_jsonl(tmp_path / f"{n}.jsonl", batch) for n, batch in enumerate(batches)]
    made, output = by_kind([*pages, *copies]), tmp_path / "in steps"
    before = by_kind(kept_by_kind.run_at_once(files[:2], tmp_path / "at once"))
    kept = kept_by_kind.run_in_steps(files, output, near_duplicates=True)
    parts = [output / name for name in ("clean", "dedup", "lines", "minhash")]
    excluded = [page for part in parts for folder in part.glob("excluded/*") for page in documents(folder)]
    assert sorted(page["id"] for page in kept + excluded) == sorted(page["id"] for page in [*pages, *copies])

    left = by_kind(kept)
    for kind in GOOD:
        assert left[kind] >= 0.95 * made[kind]
    for kind in DIALECTS:
        assert left[kind] >= 0.8 * made[kind] > before[kind]
    for kind in BAD:
        assert left[kind] <= 0.05 * made[kind]  # the first page of a site has its menu
    assert made.keys() == {*KINDS, "near copy"}
    assert by_kind(documents(parts[-1] / "excluded" / "near_duplicate"))["near copy"] == made["near copy"]
    assert all(before[kind] < 0.6 * made[kind] for kind in ("short prose", "forum", "song", "poem", "recipe"))
    assert all(before[kind] == made[kind] for kind in BAD if kind.startswith("half"))
    whole = {page["id"]: page["text"] for page in pages}
    songs = [page for page in kept if page["id"].startswith("song/")]
    whole_refrains = [refrain(page["text"]) == refrain(whole[page["id"]]) for page in songs]
    assert sum(whole_refrains) > 0.8 * len(songs)

    counts = {part.name: stats(part) for part in parts}
    losses = flow(counts)
    rest = counts["minhash"]["kept"]
    assert sum(loss.documents for loss in losses) + rest["documents"] == made.total()
    assert sum(loss.text_bytes for loss in losses) + rest["text_bytes"] == sum(
        len(page["text"].encode()) for page in [*pages, *copies]
    )
    table = (output / "flow.md").read_text(encoding="utf-8")
    assert f"| | **left** | {rest['documents']:,} |" in table.replace("|  |", "| |")
    assert (output / "flow.png").read_bytes().startswith(b"\x89PNG")


def refrain(text):
    """The lines of a page that it has twice or more, without those of the menu, headings and blank ones."""
    lines = [line for line in text.split("\n") if len(line) > len("Refrain") and not line.startswith("- ")]
    return [line for line in lines if lines.count(line) > 1]
