"""Near duplicates by the command: each dropped document is like one that stays, for any number of tasks."""

import json
import random
from pathlib import Path

import pytest

from data_prep import minhash
from data_prep.minhash import Options
from lit_gpt.cli import InputError
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import contents, documents, read_zst, run_with_kills, stats, write_jsonl

COMMAND = Path(minhash.__file__)


def edited(text, share, rng):
    """The text with a share of its words replaced."""
    new = ("".join(rng.choices("abcde", k=9)) for _ in iter(int, 1))
    return " ".join(next(new) if rng.random() < share else word for word in text.split())


def write_corpus(folder, n_originals, seed):
    """Originals and chains of copies: each copy edits the one before, and is less and less like the first."""
    rng = random.Random(seed)
    texts = (text for text in german_texts(10_000, seed) if len(text.split()) > 60)
    records = []
    for number in range(n_originals):
        text = next(texts)
        records.append({"id": f"{number}", "text": text})
        for step in range(rng.choice([0, 0, 1, 6])):
            text = edited(text, rng.choice([0, 0.01, 0.03, 0.1]), rng)
            records.append({"id": f"{number} copy {step}", "text": text})
    rng.shuffle(records)
    # The second file begins with a document that is dropped; what is like its second one counts lines there.
    first, second, *others = (next(texts) for _ in range(7))
    filling = [{"id": f"filling {number}", "text": text} for number, text in enumerate(others)]
    begin = [{"id": "first", "text": first}, {"id": "first again", "text": first}]
    end = [{"id": "second", "text": second}, {"id": "second again", "text": second}]
    records[:0] = [*begin, *filling, *end]
    records += [{"id": "short", "text": "zu kurz"}, {"id": "short too", "text": "zu kurz"}]
    n_files = 6
    return [write_jsonl(folder / f"{n}.jsonl", records[n::n_files]) for n in range(n_files)]


def run(files, output, **options):
    minhash.main(Options(input=[str(file) for file in files], output=output, workers=1, **options))
    return output


def n_grams(text):
    words = text.lower().replace(".", " ").replace("!", " ").replace("?", " ").replace("…", " ").split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def similarity(one, other):
    return len(one & other) / len(one | other)


def test_each_dropped_document_is_like_one_that_stays(tmp_path):
    files = write_corpus(tmp_path / "in", n_originals=60, seed=0)
    output = run(files, tmp_path / "out1", tasks=1)
    for tasks in (3, 6):
        assert contents(run(files, tmp_path / f"out{tasks}", tasks=tasks)) == contents(output)
    read = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    stay = {record["id"]: n_grams(record["text"]) for record in documents(output / "documents")}
    dropped = documents(output / "excluded" / "near_duplicate")
    assert sorted([*stay, *(record["id"] for record in dropped)]) == sorted(each["id"] for each in read)
    places = {record["id"]: record["excluded"]["like_at"] for record in dropped}
    assert (places["first again"], places["second again"]) == ("000000.jsonl.zst:1", "000001.jsonl.zst:1")
    for record in dropped:
        why = record["excluded"]
        like = why["like"]
        file, _, line = why["like_at"].partition(":")
        assert read_zst(output / "documents" / file)[int(line) - 1]["id"] == like
        assert similarity(stay[like], n_grams(record["text"])) == pytest.approx(why["value"], abs=1e-4)
        assert why["value"] >= why["limit"] == 0.7
    # Documents that stay are unlike each other, but for the few that no band has found.
    names = list(stay)
    left = [
        value
        for number, name in enumerate(names)
        for other in names[:number]
        if (value := similarity(stay[name], stay[other]) if stay[name] and stay[other] else 0) >= 0.7
    ]
    assert len(left) <= 4
    assert max(left, default=0) < 0.85
    counts = stats(output)
    assert counts["excluded"]["near_duplicate"]["documents"] == len(dropped) > 30
    assert counts["stages"]["minhash-choose"]["dropped"] == len(dropped)
    assert {"short", "short too"} < stay.keys()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    files = write_corpus(tmp_path / "in", n_originals=600, seed=1)
    undisturbed = contents(run(files, tmp_path / "undisturbed"))
    output = tmp_path / "killed"
    # The first and the last stage are like those of dedup.py.
    stages = [f"minhash-{stage}" for stage in ("pairs", "compare", "choose")]
    run_with_kills(COMMAND, files, output, stages)
    assert contents(output) == undisturbed


def test_a_folder_with_parts_of_an_earlier_revision_is_refused(tmp_path):
    """Its signatures have no names."""
    files = write_corpus(tmp_path / "in", n_originals=5, seed=3)
    output = run(files, tmp_path / "out", tasks=2)
    (output / "logs" / "minhash-drop" / "completions" / "00001").unlink()
    (output / "minhash" / "names" / "00000.ends.npy").unlink()
    with pytest.raises(InputError, match="begun by an earlier revision: begin in a new folder"):
        run(files, output, tasks=2)


def test_input_that_changes_between_the_stages_is_noticed(tmp_path):
    files = write_corpus(tmp_path / "in", n_originals=5, seed=2)
    output = run(files, tmp_path / "out")
    for marker in (output / "logs" / "minhash-drop" / "completions").iterdir():
        marker.unlink()
    lines = files[1].read_text().splitlines(keepends=True)
    files[1].write_text("".join(lines[:-1]) + " " * len(lines[-1]))  # of the old size
    with pytest.raises(InputError, match="the input changed"):
        run(files, output)
