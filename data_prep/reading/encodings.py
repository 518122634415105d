"""Decode HTML by its byte order mark, by its bytes if they are UTF-8, by what the server and the page say.

Names of encodings mean what the WHATWG Encoding Standard says: ISO-8859-1 is windows-1252.
"""

import codecs
import re
from collections.abc import Iterator

NOT_TEXT = "not text"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_IN_HEADER = re.compile(r"charset\s*=[\s\"']*([^\s\"';,]+)", re.IGNORECASE)
_IN_PAGE = re.compile(
    rb"<meta[^>]+?charset\s*=[\s\"']*([^\s\"'/>;]+)|^\s*<\?xml[^>]+?encoding\s*=\s*[\"']([^\"']+)",
    re.IGNORECASE,
)
_SCANNED = 1024  # bytes in which the standard looks for <meta>
_UNREADABLE = re.compile(r"[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]")
_MOST_UNREADABLE = 0.05  # of all characters; random bytes have a fifth


def decode_html(data: bytes, content_type: str = "") -> str:
    """The text of a page without NUL characters, which HTML ignores.

    UTF-8 is tried before the labels: text in another encoding is not valid UTF-8 by accident, while servers
    send UTF-8 labelled ISO-8859-1. A label with which the bytes cannot be decoded is wrong.

    Args:
        content_type: the HTTP header, perhaps with a charset.

    Raises:
        ValueError: more than a twentieth of the characters are controls, or not decodable.
    """
    text = _decoded(data, content_type)
    if len(_UNREADABLE.findall(text)) > _MOST_UNREADABLE * len(text):
        raise ValueError(NOT_TEXT)
    return text.replace("\0", "")


def _decoded(data: bytes, content_type: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if not data.isascii() and (text := _mostly_utf8(data)) is not None:
        return text
    for encoding in _guesses(data, content_type):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("windows-1252", "replace")


def _mostly_utf8(data: bytes) -> str | None:
    """The text if more of its characters beyond ASCII are valid UTF-8 than not: a page may be cut."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
    n_bad = text.count("\ufffd")
    n_beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return text if n_bad < n_beyond_ascii - n_bad else None


def _guesses(data: bytes, content_type: str) -> Iterator[str]:
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5  # only pages need it

    if label := _IN_HEADER.search(content_type):
        yield map_encoding_to_html5(label[1], fallback_utf8=False) or "utf-8"
    if label_in_page := _IN_PAGE.search(data[:_SCANNED]):
        label_bytes = label_in_page[1] or label_in_page[2]
        named = map_encoding_to_html5(label_bytes.decode("ascii", "replace"), fallback_utf8=False) or "utf-8"
        yield "utf-8" if named.startswith("utf-16") else named  # as the standard has it: <meta> was legible
    yield "utf-8"
    yield detect_encoding(data) or "utf-8"
