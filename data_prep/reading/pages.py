"""Read web pages from WARC, WET and HTML files as documents whose text is HTML.

A record that is no page is left out: counted by its type, or named with the reason in `set_aside/`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.reading.archives import Record, read_archive
from data_prep.reading.batches import MAX_LINE_BYTES, TOO_LONG, Rejected
from data_prep.reading.documents import Document
from data_prep.reading.encodings import decode_html
from data_prep.reading.rejects import LEFT_OUT, Rejects

PAGE_SUFFIXES = (".html", ".htm", ".warc", ".warc.gz", ".wet", ".wet.gz")
_PAGES = ("response", "resource", "conversion")
_HTML = ("text/html", "application/xhtml+xml")


class _Payload(NamedTuple):
    data: bytes
    content_type: str


def holds_pages(file: Path) -> bool:
    """Whether a file is read by `read_pages`."""
    return file.name.endswith(PAGE_SUFFIXES)


def read_pages(file: Path, rejects: Rejects) -> Iterator[Document]:
    """The pages of a file.

    Raises:
        InputError: too many records cannot be used, not counting those that are sound but no pages.
    """
    if file.suffix in (".html", ".htm"):
        yield from _html_file(file, rejects)
        return
    for record in read_archive(file):
        if isinstance(record, Rejected):
            rejects.add(file, record)
            continue
        kind = record.headers.get("warc-type", "unknown")
        if kind not in _PAGES:
            rejects.leave_out(f"{kind[:20]} record")
            continue
        try:
            yield _page(file, record)
        except ValueError as error:
            names = (record.headers.get(name, "-") for name in ("warc-record-id", "warc-target-uri"))
            rejects.add(file, Rejected(record.number, str(error), detail=" ".join(names)))


def _html_file(file: Path, rejects: Rejects) -> Iterator[Document]:
    try:
        if file.stat().st_size > MAX_LINE_BYTES:
            raise ValueError(TOO_LONG)
        yield Document(f"{file}:1", decode_html(file.read_bytes()), str(file), 1, {})
    except ValueError as error:
        rejects.add(file, Rejected(1, str(error)))


def _page(file: Path, record: Record) -> Document:
    """
    Raises:
        ValueError: why the record is no page.
    """
    if record.content is None:
        raise ValueError(TOO_LONG)
    headers = record.headers
    payload = _Payload(record.content, headers.get("content-type", ""))
    if payload.content_type.startswith("application/http"):
        payload = _http_payload(record.content)
    if len(payload.data) > MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    kind = headers.get("warc-identified-payload-type") or payload.content_type
    kind = kind.partition(";")[0].strip().lower() or _sniffed(payload.data)
    is_plain = kind == "text/plain" and headers.get("warc-type") == "conversion"
    if not is_plain and kind not in _HTML:
        raise ValueError(f"{LEFT_OUT}: not HTML")
    try:
        text = decode_html(payload.data, payload.content_type)
    except ValueError as error:
        raise ValueError(f"{LEFT_OUT}: {error}") from None
    name = headers.get("warc-record-id") or f"{file}:{record.number}"
    if "\0" in name:
        raise ValueError("NUL character")
    found = {"url": headers.get("warc-target-uri", "").strip("<>"), "date": headers.get("warc-date")}
    metadata = {name: value for name, value in found.items() if value}
    return Document(name, text, str(file), record.number, metadata, is_plain)


def _http_payload(block: bytes) -> _Payload:
    """The body of an HTTP response, without its transfer and content encodings.

    Archives exist that store the decoded body with the header of the encoded one: what cannot be decoded is
    taken as it is.
    """
    from fastwarc.warc import WarcRecord  # only archives need it

    for decode in ("all", "none"):
        http = WarcRecord()
        http.is_http = True
        http.set_bytes_content(block)
        try:
            http.parse_http(auto_decode=decode, quirks_mode=True)
            data = http.reader.read(MAX_LINE_BYTES + 1)
        except OSError:
            continue
        status = http.http_headers.status_code
        if status != 200:
            known = status if status and 100 <= status < 600 else "unknown"
            raise ValueError(f"{LEFT_OUT}: HTTP status {known}")
        return _Payload(data, http.http_headers.get("content-type") or "")
    raise ValueError("no HTTP response that can be read")


def _sniffed(data: bytes) -> str:
    from resiliparse.parse.encoding import detect_mime  # only pages need it

    return detect_mime(data)
