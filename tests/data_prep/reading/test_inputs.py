"""Input files are found and checked."""

import json
import os
from pathlib import Path

import pytest

from data_prep.reading.documents import read_documents
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import Rejects
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
        ([str(tmp_path / "*.bz2")], "names no file"),
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
