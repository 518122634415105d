"""Paragraph deduplication by the command, against a plain set over all of the input."""

import json
import random
from pathlib import Path

import pytest

from data_prep import dedup
from data_prep.dedup import Options
from lit_gpt.cli import InputError
from tests.data_prep.corpus_tools import contents, documents, run_with_kills, stats, write_jsonl

COMMAND = Path(dedup.__file__)


def write_corpus(folder, n_files, n_documents, seed):
    """Files with documents of blank, short and repeated lines, and line ends of both kinds."""
    rng = random.Random(seed)
    lines = ["", " ", "\t", "—", "ß", "\u00a0", "Kurz.", "Kurz.\r", *(f"Zeile {n} " * 9 for n in range(60))]
    files = []
    for file in range(n_files):
        records = []
        for number in range(n_documents):
            text = "\n".join(rng.choice(lines) for _ in range(rng.randrange(12)))
            unique = f"\nNur in {file}/{number}." if rng.random() < 0.3 else ""
            records.append({"id": f"{file}/{number}", "text": text + unique, "url": f"u{number}"})
        files.append(write_jsonl(folder / f"{file}.jsonl", records))
    return files


def by_set(files, min_bytes=0):
    """(id, kept lines or None) of all documents, blank lines left out, and the counts.

    What a document repeats of its own stays.
    """
    before, result, paragraphs, repeats = set(), [], 0, 0
    for file in files:
        for record in map(json.loads, file.read_text().splitlines()):
            lines = [line for line in record["text"].encode().split(b"\n") if line.strip()]
            considered = {line for line in lines if len(line) >= min_bytes}
            kept = [line for line in lines if line not in considered & before]
            paragraphs += len(considered)
            repeats += len(considered & before)
            before |= considered
            result.append((record["id"], kept if kept or not lines else None))
    return result, paragraphs, repeats


def run(files, output, **options):
    dedup.main(Options(input=[str(file) for file in files], output=output, workers=1, **options))
    return output


@pytest.mark.parametrize("min_bytes", [0, 6])
def test_what_stays_is_what_a_set_leaves(tmp_path, min_bytes):
    files = write_corpus(tmp_path / "in", n_files=3, n_documents=80, seed=min_bytes)
    output = run(files, tmp_path / "out", min_paragraph_bytes=min_bytes)
    expected, paragraphs, repeats = by_set(files, min_bytes)
    kept = {
        record["id"]: [line for line in record["text"].encode().split(b"\n") if line.strip()]
        for record in documents(output / "documents")
    }
    excluded = [record["id"] for record in documents(output / "excluded" / "only_repeats")]
    assert list(kept.items()) == [(name, lines) for name, lines in expected if lines is not None]
    assert excluded == [name for name, lines in expected if lines is None]
    assert stats(output)["stages"]["dedup-signatures"]["paragraphs"] == paragraphs
    assert stats(output)["stages"]["dedup-repeats"]["repeats"] == repeats > 100


def test_a_document_without_repeats_stays_as_it_was(tmp_path):
    text = "\n\n Eins \r\n\n\nZwei\n\n"
    record = {"id": "x", "text": text, "url": "u", "n": 1}
    output = run([write_jsonl(tmp_path / "a.jsonl", [record])], tmp_path / "out")
    assert documents(output / "documents") == [record]


def test_a_repeat_goes_with_the_blank_lines_after_it_and_a_refrain_stays(tmp_path):
    texts = ["Kopf\n\nEins\n\nEins", "Kopf\n\nZwei\n\nKopf\n\n\nDrei\n\nZwei\n\nKopf"]
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": text, "text": text} for text in texts])
    output = run([file], tmp_path / "out")
    assert [record["text"] for record in documents(output / "documents")] == [
        "Kopf\n\nEins\n\nEins",
        "Zwei\n\nDrei\n\nZwei",
    ]


def test_the_number_of_tasks_changes_nothing(tmp_path):
    files = write_corpus(tmp_path / "in", n_files=9, n_documents=30, seed=1)
    results = [contents(run(files, tmp_path / f"out{tasks}", tasks=tasks)) for tasks in (1, 2, 7)]
    assert results[0] == results[1] == results[2]
    assert len(results[0]) >= 9


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    files = write_corpus(tmp_path / "in", n_files=8, n_documents=2500, seed=2)
    undisturbed = contents(run(files, tmp_path / "undisturbed"))
    output = tmp_path / "killed"
    run_with_kills(COMMAND, files, output, ["dedup-signatures", "dedup-repeats", "dedup-drop"])
    assert contents(output) == undisturbed


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    files = write_corpus(tmp_path / "in", n_files=2, n_documents=3, seed=3)
    run(files, tmp_path / "out")
    with pytest.raises(InputError, match="min_paragraph_bytes"):
        run(files, tmp_path / "out", min_paragraph_bytes=5)
    with pytest.raises(InputError, match="--input"):
        run(files[:1], tmp_path / "out")
    path = tmp_path / "out" / "settings.json"  # as before repeats within a document stayed
    settings = json.loads(path.read_text())
    del settings["own_repeats"]
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="by an earlier version of this code, without --own_repeats"):
        run(files, tmp_path / "out")


def test_input_that_changes_between_the_stages_is_noticed(tmp_path):
    files = write_corpus(tmp_path / "in", n_files=2, n_documents=20, seed=4)
    output = run(files, tmp_path / "out")
    for marker in (output / "logs" / "dedup-drop" / "completions").iterdir():
        marker.unlink()
    lines = files[1].read_text().splitlines(keepends=True)
    new = json.dumps({"id": "neu", "text": "Eins.\nZwei.\nDrei.\nVier."})
    files[1].write_text("".join(lines[:-1]) + new.ljust(len(lines[-1]) - 1) + "\n")
    assert len(new) < len(lines[-1])  # of the old size
    with pytest.raises(InputError, match="the input changed"):
        run(files, output)
