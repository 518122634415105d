"""Pages are decoded as a reader would want them, however they are labelled."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.reading.encodings import NOT_TEXT, decode_html
from tests.data_prep.web_pages import SENTENCES, page

HEADERS = {
    "none": "text/html",
    "utf-8": 'text/html; charset="UTF-8"',
    "latin1": "text/html;charset=iso-8859-1",
}
METAS = {
    "none": "",
    "utf-8": '<meta charset="utf-8">',
    "latin1": '<meta http-equiv="Content-Type" content="text/html; charset=ISO-8859-1">',
    "utf-16": "<meta charset=utf-16>",
    "nonsense": "<meta charset='deutsch'>",
}


@settings(deadline=None)
@given(
    words=st.lists(st.sampled_from(" ".join(SENTENCES).split()), min_size=1, max_size=200),
    quoted=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "windows-1252"]),
    header=st.sampled_from(sorted(HEADERS)),
    meta=st.sampled_from(sorted(METAS)),
)
def test_german_is_read_whatever_header_and_page_claim(words, quoted, encoding, header, meta):
    """Of UTF-8 and windows-1252, which is what ISO-8859-1 means; quotation marks exist in the latter only."""
    text = " ".join(words)
    html = page(f"<p>{f'„{text}“' if quoted else text}</p>", METAS[meta])
    html = html.replace("©", "(c)") if len(words) < 3 else html
    assert decode_html(html.encode(encoding), HEADERS[header]) == html


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("windows-1251", "Городской совет решил во вторник не сносить старый мост."),
        ("iso-8859-2", "Rada gminy postanowiła we wtorek nie burzyć starego mostu."),
        ("shift_jis", "市議会は火曜日に古い橋を取り壊さないことを決定しました。"),
        ("gb18030", "市议会星期二决定不拆除旧桥。"),
        ("iso-8859-15", "Das kostet 4 € und nicht mehr, sagt Frau Müller."),
    ],
)
@pytest.mark.parametrize("by", ["header", "meta", "xml"])
def test_labels_of_other_encodings_hold(label, text, by):
    html = f"<html><head>{f'<meta charset={label}>' if by == 'meta' else ''}</head><p>{text}</p></html>"
    if by == "xml":
        html = f'<?xml version="1.0" encoding="{label}"?>{html}'
    content_type = f"text/html; charset={label}" if by == "header" else ""
    assert decode_html(html.encode(label), content_type) == html


def test_a_page_that_was_cut_within_a_character_is_utf8():
    html = page(f"<p>{SENTENCES[0]}</p>").encode()
    cut = html[: html.rindex("ß".encode()) + 1]
    assert decode_html(cut) == cut[:-1].decode() + "\ufffd"


def test_bytes_without_text_are_refused_and_nul_is_left_out():
    with pytest.raises(ValueError, match=NOT_TEXT):
        decode_html(random.Random(1).randbytes(3000), "text/html")
    with pytest.raises(ValueError, match=NOT_TEXT):
        decode_html(bytes(3000))
    assert decode_html(b"<p>ein Satz mit einem\0 NUL</p>") == "<p>ein Satz mit einem NUL</p>"
    assert decode_html(b"") == ""


def test_a_header_of_many_spaces_is_read_in_one_pass():
    """The time limit of tests ends one that is quadratic in them."""
    assert decode_html("für".encode(), f"text/html; charset={' ' * 1_000_000};") == "für"
    assert decode_html(b"f\xfcr", f"text/html; charset={' ' * 1_000_000}'latin1'") == "für"
