"""Filtering by the command: every document of the input ends in one place, with a reason."""

import datetime
import decimal
import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import clean
from data_prep.clean import Options
from lit_gpt.cli import InputError, parse_options
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import contents, documents, stats, write_jsonl

GOOD = (
    "Der Gemeinderat hat am Dienstag beschlossen, die alte Brücke nicht abzureißen, sondern sie mit dem "
    "Geld des Landes zu sanieren. Die Kosten werden auf rund vier Millionen geschätzt, von denen die Stadt "
    "nur einen Teil trägt. In den kommenden Jahren soll außerdem ein Steg für Fußgänger gebaut werden, damit "
    "die Kinder während der Arbeiten zu Fuß in die Schule gehen können."
)


def run(files, output, **options):
    clean.main(Options(input=[str(file) for file in files], output=output, workers=1, **options))
    return output


def test_each_document_ends_in_one_place_with_a_reason(tmp_path):
    records = [
        {"id": "gut", "text": GOOD, "url": "u", "language_score": 0.9},
        {"id": "kurz", "text": "Zu kurz.", "url": "v"},
        {"id": "fremd", "text": GOOD, "language_score": 0.5},
        {"id": "leer", "text": " \n "},
        {"id": "auch gut", "text": GOOD + " Noch ein Satz."},
    ]
    output = run([write_jsonl(tmp_path / "a.jsonl", records)], tmp_path / "out")
    assert documents(output / "documents") == [records[0], records[4]]
    excluded = {folder.name: documents(folder) for folder in (output / "excluded").iterdir()}
    assert excluded == {
        "min_words": [records[1] | {"excluded": {"reason": "min_words", "value": 2, "limit": 50}}],
        "min_language_score": [
            records[2] | {"excluded": {"reason": "min_language_score", "value": 0.5, "limit": 0.821}}
        ],
        "empty": [records[3] | {"excluded": {"reason": "empty"}}],
    }
    counted = stats(output)
    sizes = [len(record["text"].encode()) for record in records]
    assert counted["read"] == {"documents": 5, "text_bytes": sum(sizes)}
    assert counted["kept"] == {"documents": 2, "text_bytes": sizes[0] + sizes[4], "tokens": 0}
    assert counted["excluded"]["min_words"] == {"documents": 1, "text_bytes": sizes[1], "tokens": 0}


def test_a_signal_that_no_document_has_is_said(tmp_path, capsys):
    records = [{"id": f"{n}", "text": GOOD, "signals": {"a": n} if n else {}} for n in range(5)]
    files = [write_jsonl(tmp_path / f"{n}.jsonl", records[n::2]) for n in range(2)]
    output = run(files, tmp_path / "out", signals={"a": (2, None), "aa": (None, 3)}, preset="none")
    said = "no document has the signal aa: its limit drops nothing; check the name in --signals"
    printed, page = capsys.readouterr().out, (output / "report.md").read_text(encoding="utf-8")
    for text in (printed, page):
        assert said in text
        assert "   1  without the signal a, not judged by its limit" in text
    assert stats(output)["without_signal"] == {"a": 1, "aa": 5}
    assert stats(output)["kept"]["documents"] == 4
    assert "without_signal" not in stats(run(files, tmp_path / "none", preset="none"))


def test_a_signal_that_is_no_number_is_none(tmp_path):
    given = [None, "0", ["a", 0], {"a": "0"}, {"a": [0]}, {"a": None}, {"a": 0}, {"a": 2.5}]
    records = [{"id": str(n), "text": GOOD, "signals": signals} for n, signals in enumerate(given)]
    files = [write_jsonl(tmp_path / "a.jsonl", records)]
    pq.write_table(
        pa.table({"id": ["nan"], "text": [GOOD], "signals": [{"a": math.nan}]}), tmp_path / "b.parquet"
    )
    output = run([*files, tmp_path / "b.parquet"], tmp_path / "out", signals={"a": (1, None)}, preset="none")
    assert [each["id"] for each in documents(output / "excluded" / "min_signal_a")] == ["6"]
    assert stats(output)["without_signal"] == {"a": 7}


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_words": 100, "max_words": 10}, r"--min_words and --max_words .*: 100 is above 10"),
        ({"max_words": 10}, r"\(--preset german sets what is not given\): 50 is above 10"),
        ({"signals": {"a": (2, 1)}}, "--signals a: 2 is above 1"),
    ],
)
def test_limits_that_nothing_can_keep_are_refused(tmp_path, limits, says):
    with pytest.raises(InputError, match=says):
        Options(input=["-"], output=tmp_path, **limits).limits()


def test_shares_are_at_most_one():
    with pytest.raises(InputError, match=r"--min_letters_frac: must be at least 0 and at most 1, not 1\.5"):
        parse_options(Options, ["--input", "a", "--output", "b", "--min_letters_frac", "1.5"])


def test_unusable_lines_are_set_aside_and_the_rest_goes_on(tmp_path):
    lines = [
        json.dumps({"id": "a", "text": GOOD}).encode(),
        b'{"id": "b", "text": "abgeschnitten',
        b'{"id": "c", "text": "\xff\xfe"}',
        b'{"id": "d", "text": "\\ud800"}',
        b'{"id": "e", "text": "' + b"[" * 100_000,
        b'{"id": "f", "n": ' + b"9" * 10_000 + b', "text": "x"}',
        b'{"id": "g", "text": "eins", "text": "zwei"}',
        b'{"id": "h", "text": "NUL \\u0000"}',
        json.dumps({"id": "z", "text": GOOD}).encode() + b"\r",
    ]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines))
    output = run([file], tmp_path / "out")
    assert [record["id"] for record in documents(output / "documents")] == ["a", "z"]
    places = json.loads((output / "set_aside" / "000000.json").read_text())
    assert [int(place["place"].rpartition(":")[2]) for place in places] == [2, 3, 4, 5, 6, 7, 8]
    assert sum(stats(output)["set_aside"].values()) == 7


def test_a_file_that_begins_with_unusable_lines_may_have_as_many_as_allowed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(("x" * 1000 + "\n") * 1500 + json.dumps({"id": "a", "text": GOOD}) + "\n")
    with pytest.raises(InputError, match="more than 1000 unusable lines"):
        run([file], tmp_path / "out")
    output = run([file], tmp_path / "out", max_bad_lines=1500)
    assert [record["id"] for record in documents(output / "documents")] == ["a"]
    assert sum(stats(output)["set_aside"].values()) == 1500


def test_tokens_are_counted_and_their_ratio_limited(tmp_path, tokenizer_dir):
    texts = list(german_texts(20, seed=3))
    noise = "xq9Qzv-kÖz7%yj0w " * 60
    records = [{"id": str(number), "text": text} for number, text in enumerate([*texts, noise])]
    files = [write_jsonl(tmp_path / "a.jsonl", records)]
    output = run(files, tmp_path / "out", preset="none", tokenizer=tokenizer_dir, max_tokens_per_word=8.0)
    assert [record["id"] for record in documents(output / "excluded" / "max_tokens_per_word")] == ["20"]
    counted = stats(output)
    assert counted["kept"]["documents"] == 20
    assert counted["kept"]["tokens"] > counted["kept"]["text_bytes"] / 6
    with pytest.raises(InputError, match="need a --tokenizer"):
        run(files, tmp_path / "other", preset="none", max_tokens_per_word=5.0)


def test_the_number_of_tasks_changes_nothing(tmp_path):
    texts = list(german_texts(120, seed=4))
    files = [
        write_jsonl(
            tmp_path / f"{n}.jsonl", [{"id": text[:20], "text": text} for text in texts[n * 20 :][:20]]
        )
        for n in range(6)
    ]
    one, three = (run(files, tmp_path / f"out{tasks}", tasks=tasks) for tasks in (1, 3))
    assert contents(one) == contents(three)
    assert stats(one)["excluded"] == stats(three)["excluded"]
    digests = [json.loads(path.read_text())["sha256"] for path in sorted((three / "inputs").iterdir())]
    assert len(set(digests)) == 6


def test_a_file_that_grew_is_refused_where_tasks_would_share_the_files_otherwise(tmp_path):
    records = [{"id": str(n), "text": GOOD} for n in range(10)]
    files = [write_jsonl(tmp_path / f"{n}.jsonl", records) for n in range(6)]
    output = run(files, tmp_path / "out", tasks=2)
    undisturbed = contents(output)
    (output / "logs/clean/completions/00001").unlink()  # of files 3, 4 and 5: now 3 and 4 were of no task
    (output / "logs/clean-summary/completions/00000").unlink()
    write_jsonl(files[5], records * 5)
    with pytest.raises(InputError, match=r"the input changed: .*5.jsonl had 4,500 bytes .*, now 22,500; put"):
        run(files, output, tasks=2)
    write_jsonl(files[5], records)
    assert contents(run(files, output, tasks=2)) == undisturbed


def test_the_report_has_counts_and_examples_as_text(tmp_path):
    evil = {"id": "<script>\n# alert(1)", "text": "</pre><script>\n# Titel"}
    good = {"id": "b", "text": GOOD, "excluded": None}  # a field of the input
    output = run([write_jsonl(tmp_path / "a.jsonl", [evil, good])], tmp_path / "out")
    page = (output / "report.md").read_text(encoding="utf-8")
    assert "| min_words | 1 | 50.00% | 22 | – |" in page
    assert "    Der Gemeinderat hat am Dienstag" in page
    assert all(line.startswith("    ") for line in page.splitlines() if re.search("script|alert|Titel", line))


def test_a_file_of_which_nothing_is_kept_is_still_there(tmp_path):
    files = [write_jsonl(tmp_path / f"{n}.jsonl", [{"id": "a", "text": "kurz"}]) for n in range(2)]
    output = run(files, tmp_path / "out", tasks=1)
    assert [path.name for path in sorted((output / "documents").iterdir())] == [
        "000000.jsonl.zst",
        "000001.jsonl.zst",
    ]
    assert documents(output / "documents") == []


def test_what_only_parquet_knows_becomes_text(tmp_path):
    columns = {
        "id": ["a"],
        "text": [GOOD],
        "when": [datetime.datetime(2020, 1, 2)],
        "took": [datetime.timedelta(seconds=3)],
        "raw": [b"\xff\x00"],
        "price": [decimal.Decimal("1.50")],
        "pairs": pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    [kept] = documents(run([tmp_path / "x.parquet"], tmp_path / "out") / "documents")
    found = [kept[name] for name in ("when", "took", "raw", "price", "pairs")]
    assert found == ["2020-01-02T00:00:00", "0:00:03", "ff00", "1.50", [["x", 1]]]


def test_a_folder_of_an_earlier_revision_is_summed_up_too(tmp_path, capsys):
    output = run([write_jsonl(tmp_path / "a.jsonl", [{"text": GOOD}])], tmp_path / "out")
    counts = stats(output)
    del counts["losses"]
    (output / "stats.json").write_text(json.dumps(counts))
    (output / "report.md").rename(output / "report.html")
    run([tmp_path / "a.jsonl"], output)
    assert capsys.readouterr().out.endswith(f"examples: {output / 'report.html'}\n")
    (output / "report.md").touch()
    (output / "report.pdf").touch()
    run([tmp_path / "a.jsonl"], output)
    assert capsys.readouterr().out.endswith(f"examples: {output / 'report.md'}\n")
