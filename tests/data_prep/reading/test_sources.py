"""Corpora in their layouts: RedPajama V2's three folders, OSCAR's nested fields, FineWeb2's Parquet."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.reading.rejects import Rejects
from data_prep.reading.sources import SOURCES, read_source
from lit_gpt.cli import InputError


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
