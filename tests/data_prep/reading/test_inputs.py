"""Input files are found and checked, and each kind of corpus is read by its own field names."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.reading.documents import Rejects, read_documents
from data_prep.reading.inputs import SOURCES, find_files, look_into, read_source
from lit_gpt.cli import InputError

LINE = b'{"id": "a", "text": "eins"}'


def test_unusable_patterns_are_one_line(tmp_path: Path):
    file, empty = tmp_path / "x.jsonl", tmp_path / "empty.jsonl"
    file.write_bytes(LINE)
    empty.touch()
    for name in ("paper.pdf", "a.warc.zst", "a.arc.gz"):
        (tmp_path / name).write_bytes(b"%PDF-1.7\n")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xfccher.jsonl")).write_bytes(LINE)
    for patterns, says in [
        ([str(tmp_path / "nowhere.jsonl")], "names no file"),
        ([str(tmp_path / "*.gz")], "names no file"),
        ([str(tmp_path)], "is a folder"),
        ([str(file), str(tmp_path / "x*")], "2 times"),
        ([str(file), os.path.relpath(file)], "2 times"),
        ([str(empty)], "is empty"),
        ([str(tmp_path / "paper.pdf")], "paper.pdf is none of .jsonl"),
        ([str(tmp_path / "a.warc.zst")], "make a .warc of it by `zstd -d`"),
        ([str(tmp_path / "a.arc.gz")], "make a .warc.gz of it by `warcio recompress`"),
        ([str(tmp_path / "p*")], "paper.pdf is none of .jsonl"),
        ([os.fsdecode(os.fsencode(tmp_path) + b"/b\xfccher.jsonl")], "rename it"),
    ]:
        with pytest.raises(InputError, match=says):
            find_files(patterns)


def test_a_file_is_looked_into_before_anything_is_made_of_it(tmp_path: Path):
    good, nested, blank = tmp_path / "good.jsonl", tmp_path / "nested.jsonl", tmp_path / "blank.jsonl"
    good.write_bytes(b"{\n" * 20 + LINE)
    nested.write_bytes(b'{"page": {"body": "x", "url": "u"}, "n": 1}')
    blank.write_bytes(b"\n\n")  # nothing is lost of it
    look_into([good, blank], ["text"], ["id"])
    look_into([nested], ["page.body"], ["page.url"], needs_id=True)
    [document] = read_documents([nested], Rejects(), ["page.body"], ["page.url"])
    assert (document.id, document.text, document.metadata) == ("u", "x", {"page": {}, "n": 1})
    with pytest.raises(
        InputError, match=r"beside its text the fields page, n, none of url; name one by --id_f"
    ):
        look_into([nested], ["page.body"], ["url"], needs_id=True)
    with pytest.raises(InputError, match=r"no document in .*blank.jsonl"):
        look_into([blank], ["text"], ["id"])
    disguised = tmp_path / "disguised.jsonl"
    for content, says in [
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", r"disguised.jsonl:1: not JSON"),
        (b"id,text\n1,eins\n", r"disguised.jsonl:1: not JSON"),
        (json.dumps([{"text": "eins"}]).encode(), r":1: not a JSON object"),
        (LINE.decode().encode("utf-16"), r":1: not UTF-8"),
        (LINE + b"\r" + LINE, r":1: not JSON"),
        (b'{"text": "x", "id": 1.5}', r":1: field id is neither"),
    ]:
        disguised.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"has no document that can be used.*{says}.*a JSON object in a line"
        ):
            look_into([good, disguised], ["text"], ["id"])


def test_an_archive_without_a_record_is_told_from_lines(tmp_path: Path):
    archive = tmp_path / "a.warc.gz"
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"a.warc.gz:1: unreadable .*; get the file again, or leave it out$"):
        look_into([archive], ["text"], ["id"])


def hub_with(folder, monkeypatch, error=None):
    """A hub whose one dataset has been downloaded to `folder`; returns what it was asked for."""
    asked = []

    def snapshot_download(repo_id, **arguments):
        asked.append((repo_id, arguments))
        if error is not None:
            raise error
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_dataset_of_the_hub_is_named_like_a_file(tmp_path, monkeypatch):
    for name in ("data/de/b.parquet", "data/de/a.parquet", "data/en/a.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    asked = hub_with(tmp_path, monkeypatch)
    local = tmp_path / "data/en/a.parquet"
    found = find_files([str(local), "hf://datasets/Owner/web-2@abc/data/de/*.parquet"], download=False)
    assert found == [local, tmp_path / "data/de/a.parquet", tmp_path / "data/de/b.parquet"]
    assert asked == [
        (
            "Owner/web-2",
            {
                "repo_type": "dataset",
                "revision": "abc",
                "allow_patterns": ["data/de/*.parquet"],
                "local_files_only": True,
            },
        )
    ]
    assert len(find_files(["hf://datasets/Owner/web-2"])) == 3
    with pytest.raises(InputError, match="2 times"):
        find_files([str(local), "hf://datasets/Owner/web-2"])


def test_a_dataset_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    hub_with(tmp_path, monkeypatch, error=OSError("401 Client Error\nmore\nlines"))
    with pytest.raises(InputError, match=r"Owner/web cannot be had .*: 401 Client Error$"):
        find_files(["hf://datasets/Owner/web"])
    hub_with(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="no such files"):
        find_files(["hf://datasets/Owner/web/*.parquet"])


def read(file, source):
    rejects = Rejects()
    return list(read_source(file, SOURCES[source], rejects)), rejects


def write_gz(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return path


def redpajama(root: Path, signal_rows: list[int], duplicate_rows: list[int]) -> Path:
    """A shard of six documents in RedPajama V2's three folders."""
    shard = "2023-06/0007/de_head.json.gz"
    documents = [
        {
            "url": f"http://{row}",
            "date_download": "2023-02-07",
            "raw_content": f"Text {row}",
            "language": "de",
            "language_score": 0.9 + row / 100,
            "line_ids": [1, 2],
        }
        for row in range(6)
    ]
    signals = [
        {
            "id": f"{shard}/{row}",
            "id_int": row,
            "metadata": {"language": "de"},
            "quality_signals": {
                "ccnet_perplexity": [[0, 6, 300.5 + row]],
                "rps_lines_num_words": [[0, 3, 1.0], [3, 6, 2.0]],
                "rps_doc_ut1_blacklist": [[0, 6, None]],
            },
        }
        for row in signal_rows
    ]
    write_gz(root / "quality_signals/2023-06/0007/de_head.signals.json.gz", signals)
    lists = root / "duplicates/2023-06/0007/de_head.duplicates.parquet"
    lists.parent.mkdir(parents=True)
    rows = {"shard_id": [shard] * len(duplicate_rows), "doc_id": [f"{shard}/{row}" for row in duplicate_rows]}
    pq.write_table(pa.table(rows, pa.schema([("shard_id", pa.string()), ("doc_id", pa.string())])), lists)
    return write_gz(root / "documents" / shard, documents)


def test_redpajama_has_ids_signals_and_duplicates_of_its_lists(tmp_path):
    documents, rejects = read(redpajama(tmp_path, [0, 2, 5], [2, 3]), "redpajama_v2")
    assert [document.id for document in documents] == [f"2023-06/0007/de_head.json.gz/{n}" for n in range(6)]
    assert [document.text for document in documents] == [f"Text {row}" for row in range(6)]
    perplexity = [document.metadata.get("signals", {}).get("ccnet_perplexity") for document in documents]
    assert perplexity == [300.5, None, 302.5, None, None, 305.5]
    assert [document.metadata.get("source_duplicate", False) for document in documents] == [0, 0, 1, 1, 0, 0]
    assert documents[1].metadata == {
        "language": "de",
        "language_score": 0.91,
        "url": "http://1",
        "date": "2023-02-07",
    }
    assert "rps_lines_num_words" not in documents[0].metadata["signals"]
    assert not rejects.places


def test_redpajama_without_the_other_folders(tmp_path):
    file = redpajama(tmp_path, [], [])
    for folder in ("quality_signals", "duplicates"):
        (tmp_path / folder).rename(tmp_path / f"no-{folder}")
    documents, rejects = read(file, "redpajama_v2")
    assert len(documents) == 6
    assert not rejects.places


def test_redpajama_with_a_broken_list_goes_on_and_says_so(tmp_path):
    file = redpajama(tmp_path, [0], [1])
    broken = tmp_path / "duplicates/2023-06/0007/de_head.duplicates.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    documents, rejects = read(file, "redpajama_v2")
    assert len(documents) == 6
    [(place, reason)] = rejects.places
    assert place == f"{broken}:1"
    assert "list of duplicates" in reason


def test_redpajama_outside_its_layout_is_refused(tmp_path):
    file = write_gz(tmp_path / "de_head.json.gz", [{"raw_content": "x"}])
    with pytest.raises(InputError, match="ROOT/documents"):
        read(file, "redpajama_v2")


def test_oscar_keeps_its_fields_in_nested_objects(tmp_path):
    record = {
        "content": "Inhalt",
        "warc_headers": {
            "warc-record-id": "<urn:uuid:1>",
            "warc-target-uri": "http://a",
            "warc-date": "2022-11-26T09:45:47Z",
        },
        "metadata": {"identification": {"label": "de", "prob": 0.97}, "tlsh": "x", "categories": None},
    }
    path = write_gz(tmp_path / "de.jsonl.gz", [record, {"content": "ohne Kopf", "metadata": None}])
    [document, bare], rejects = read(path, "oscar")
    assert (document.id, document.text) == ("<urn:uuid:1>", "Inhalt")
    assert document.metadata == {
        "language": "de",
        "language_score": 0.97,
        "url": "http://a",
        "date": "2022-11-26T09:45:47Z",
    }
    assert (bare.id, bare.metadata) == (f"{path}:2", {})
    assert not rejects.places


def test_fineweb2_comes_as_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    rows = {
        "text": ["Eins", "Zwei"],
        "id": ["<urn:1>", "<urn:2>"],
        "dump": ["d", "d"],
        "url": ["u", "v"],
        "date": ["2020", "2021"],
        "language": ["deu", "deu"],
        "language_score": [0.9, 0.8],
        "top_langs": ["{}", "{}"],
    }
    pq.write_table(pa.table(rows), path)
    documents, _ = read(path, "fineweb2")
    assert [(document.id, document.text) for document in documents] == [
        ("<urn:1>", "Eins"),
        ("<urn:2>", "Zwei"),
    ]
    assert documents[1].metadata == {"language": "deu", "language_score": 0.8, "url": "v", "date": "2021"}
