"""Extraction by the command: each record ends in one place, and texts are those of trafilatura."""

import gzip
import html
import io
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trafilatura

from data_prep import clean, extract, prepare
from data_prep.reading.batches import MAX_LINE_BYTES
from data_prep.stages.pipeline import run_stages
from data_prep.text.extract import MAX_PAGE_BYTES
from lit_gpt.cli import InputError
from tests.data_prep.corpus_tools import contents, documents, read_zst, run_with_kills, stats, write_jsonl
from tests.data_prep.web_pages import (
    KINDS,
    SENTENCES,
    page,
    records_by_warcio,
    response,
    write_warc,
)

pytestmark = pytest.mark.slow
ARTICLE = KINDS["article"]
EMPTY = '<html><head><title>Brücke</title></head><body><img src="a.png"></body></html>'
LEFT_OUT = {
    "404": "HTTP status 404",
    "moved": "HTTP status 301",
    "picture": "not HTML",
    "noise": "not text",
    "dns": "not HTML",
}
EXCLUDED = {"deep": "no_main_text", "empty": "no_main_text", "12MB": "page_too_long"}
REJECTED = {"34MB", "bomb", "no-response"}


def chunked(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"


def records(writer):
    """Pages of each kind and encoding, what is no page, and pages made to do harm. The URI is the kind."""
    noise = random.Random(1)
    for name, found in KINDS.items():
        yield response(writer, name, found.encode())
    latin = ARTICLE.encode("windows-1252")
    yield response(writer, "article", latin, content_type="text/html; charset=ISO-8859-1")
    yield response(writer, "article", latin, content_type="text/html; charset=utf-8")
    yield response(writer, "article", ARTICLE.encode("utf-16"), content_type="application/xhtml+xml")
    yield response(writer, "article", gzip.compress(latin), content_encoding="gzip")
    yield response(writer, "article", chunked(latin), transfer_encoding="chunked")
    yield response(
        writer, "article", latin, content_encoding="gzip", transfer_encoding="chunked"
    )  # it is not
    yield response(writer, "404", ARTICLE.encode(), status="404 Not Found")
    yield response(writer, "moved", b"", status="301 Moved Permanently", location="/")
    yield response(writer, "picture", b"\x89PNG", content_type="image/png")
    yield response(writer, "noise", noise.randbytes(20_000))
    yield writer.create_warc_record(
        "dns", "response", payload=io.BytesIO(b"1.2.3.4"), warc_content_type="text/dns"
    )
    yield writer.create_warc_record("request", "request", payload=io.BytesIO(b"GET / HTTP/1.1\r\n\r\n"))
    yield writer.create_warc_record("metadata", "metadata", payload=io.BytesIO(b"a: b\r\n"))
    yield writer.create_revisit_record("revisit", "sha1:A", "http://a.de", "2023-01-01T00:00:00Z")
    yield writer.create_warc_record(
        "article", "resource", payload=io.BytesIO(ARTICLE.encode()), warc_content_type="text/html"
    )
    yield writer.create_warc_record(
        "wet",
        "conversion",
        payload=io.BytesIO("Zeile\n\n<b>über</b>".encode()),
        warc_content_type="text/plain",
    )
    yield response(writer, "deep", ("<div>" * 100_000 + SENTENCES[0]).encode())
    yield response(writer, "nul", ARTICLE.replace("Brücke", "Brü\0cke").encode())
    yield response(writer, "empty", EMPTY.encode())
    yield response(writer, "12MB", page(f"<p>{'lang ' * 2_100_000}").encode())
    yield response(writer, "34MB", page(f"<p>{'lang ' * 7_000_000}").encode())
    yield response(writer, "bomb", gzip.compress(bytes(40_000_000)), content_encoding="gzip")
    yield writer.create_warc_record(
        "no-response", "response", payload=io.BytesIO(b"x" * 70_000), warc_content_type="application/http"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    files = [write_warc(folder / "a.warc.gz", records)]
    files.append(write_warc(folder / "b.warc", lambda writer: list(records(writer))[:22]))
    files.append(folder / "c.html")
    files[-1].write_bytes(ARTICLE.encode("windows-1252"))
    rows = [
        {"doc_id": name, "raw_html": found, "n": 7, "is_plain_text": True} for name, found in KINDS.items()
    ]
    files.append(write_jsonl(folder / "d.jsonl", rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "e.parquet")
    return [*files, folder / "e.parquet"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, files):
    """By processes of their own, as users run it, and killed once."""
    output = tmp_path_factory.mktemp("extracted") / "out"
    run_with_kills(extract.__file__, files, output, ["extract"])
    return output


def expected(kind: str) -> str | None:
    found = ARTICLE if kind == "nul" else KINDS.get(kind)
    text = found and trafilatura.extract(found)
    return "\n".join(dict.fromkeys(text.split("\n"))) if text and kind == "comments" else text


def test_each_record_that_warcio_finds_ends_in_one_place(extracted, files):
    for number, file in enumerate(files[:2]):
        name = f"{number:06d}"
        by_id = {each: (kind, uri) for kind, each, uri in records_by_warcio(file)}
        kept = {each["id"]: each for each in read_zst(extracted / "documents" / f"{name}.jsonl.zst")}
        excluded = {
            each["id"]: path.parent.name
            for path in extracted.glob(f"excluded/*/{name}.jsonl.zst")
            for each in read_zst(path)
        }
        places = json.loads((extracted / "set_aside" / f"{name}.json").read_text())
        named = {each["reason"].rpartition("(")[2].split()[0]: each["reason"] for each in places}
        no_pages = {
            each
            for each, (kind, _) in by_id.items()
            if kind in ("warcinfo", "request", "metadata", "revisit")
        }
        assert len(by_id) == len(kept) + len(excluded) + len(named) + len(no_pages)
        assert by_id.keys() == kept.keys() | excluded.keys() | named.keys() | no_pages
        for each, document in kept.items():
            uri = by_id[each][1]
            assert document["url"] == uri
            assert document["date"]
            assert document["text"] == ("Zeile\n\n<b>über</b>" if uri == "wet" else expected(uri))
            assert document.keys() == {"id", "text", "url", "date"}
        assert {by_id[each][1]: reason for each, reason in excluded.items()}.items() <= EXCLUDED.items()
        for each, reason in named.items():
            uri = by_id[each][1]
            assert uri in reason
            assert uri in REJECTED or reason.startswith(f"left out: {LEFT_OUT[uri]}")


def test_counts_and_what_is_excluded(extracted, files):
    counted = stats(extracted)
    kinds = [kind for file in files[:2] for kind, _, _ in records_by_warcio(file)]
    for kind in ("warcinfo", "request", "metadata", "revisit"):
        assert counted["set_aside"][f"left out: {kind} record"] == Counter(kinds)[kind]
    assert counted["set_aside"][f"longer than {MAX_LINE_BYTES >> 20} MiB"] == 2
    read = counted["kept"]["documents"] + sum(each["documents"] for each in counted["excluded"].values())
    assert counted["read"]["documents"] == read
    [long] = documents(extracted / "excluded" / "page_too_long")
    assert long["excluded"]["limit"] == MAX_PAGE_BYTES < long["excluded"]["value"]
    assert {EMPTY} <= {each["text"] for each in documents(extracted / "excluded" / "no_main_text")}
    assert max(stage.get("peak_megabytes", 0) for stage in counted["stages"].values()) < 700
    report = (extracted / "report.md").read_text()
    assert "left out: HTTP status 404" in report
    assert "records rejected: longer than" in report


def test_html_files_and_fields_with_html(extracted, files):
    html_file, jsonl, parquet = (read_zst(extracted / "documents" / f"00000{n}.jsonl.zst") for n in (2, 3, 4))
    assert html_file == [{"id": f"{files[2]}:1", "text": expected("article")}]
    fields = {"n": 7, "is_plain_text": True}  # whatever they are called
    assert jsonl == parquet == [{"id": name, "text": expected(name)} | fields for name in KINDS]


def run(files, output, **options):
    options = {"workers": 1} | options
    extract.main(extract.Options(input=list(map(str, files)), output=output, **options))
    return output


def test_neither_the_number_of_tasks_nor_kills_change_anything(extracted, files, tmp_path):
    assert contents(run(files, tmp_path / "one", tasks=1)) == contents(extracted)


def test_half_a_file_is_lost_aloud(files, tmp_path, capsys):
    half = tmp_path / "half.warc.gz"
    data = files[0].read_bytes()
    half.write_bytes(data[: len(data) // 20] + b"\0" + data[len(data) // 20 + 1 : len(data) // 3])
    with pytest.raises(InputError, match=r"more than 0 unusable lines, the last .*half.warc.gz:"):
        run([half], tmp_path / "a", max_bad_lines=0)
    output = run([half], tmp_path / "b")
    losses = stats(output)["losses"]
    assert [f"lost: {loss}" for loss in losses] == [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("lost: ")
    ]
    assert "unreadable from here on" in losses[-1]
    assert "how much is missing cannot be told, perhaps as much again" in losses[-1]


def test_prepare_extracts_first_and_others_refuse(files, tmp_path):
    shown = "Mit <b>fett</b> hebt man im Forum ein Wort hervor, und so macht es auch die Stadt."
    tags = tmp_path / "tags.html"
    tags.write_text(page(f"<article><p>{html.escape(shown)}</p><p>{SENTENCES[0]}</p></article>"))
    given = [files[1], tags]
    options = prepare.Options(
        input=list(map(str, given)), output=tmp_path / "a", workers=1, min_words=10, min_language_frac=0
    )
    run_stages(prepare.corpus_stages(given, options)[0], options, options.output, Path("-"))
    assert any(shown in each["text"] for each in documents(options.output / "clean" / "documents"))
    origin = json.loads((options.output / "origin.json").read_text())
    assert [each["path"] for each in origin["inputs"]] == list(map(str, given))
    assert origin["extract"]["settings"]["extractor"] == f"trafilatura {trafilatura.__version__}"
    assert origin["clean"]["read"]["documents"] == origin["extract"]["kept"]["documents"]
    assert "| extract | markup and surroundings | 0 |" in (options.output / "flow.md").read_text()
    assert "what surrounds the main text" in (options.output / "report.html").read_text()
    for refused, others, says in [
        (clean, {}, "let data_prep/extract.py read them first"),
        (prepare, {"input": [str(files[0]), str(files[3])]}, "with web pages and .* with text"),
    ]:
        given = {"input": [str(files[0])], "output": tmp_path / "b"} | others
        with pytest.raises(InputError, match=says):
            refused.main(refused.Options(**given))
    with pytest.raises(InputError, match=r"let data_prep/extract.py extract the text first"):
        clean.main(clean.Options(input=[str(files[3])], output=tmp_path / "b", source="html"))


def test_what_only_extraction_needs_is_imported_there():
    heavy = {"lxml", "trafilatura", "fastwarc", "resiliparse", "charset_normalizer"}
    code = f"import sys, data_prep.prepare; print(*({heavy!r} & set(sys.modules)))"
    root = Path(extract.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not found.stdout.strip()
