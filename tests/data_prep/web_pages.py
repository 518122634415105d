"""German web pages with menus, notices and footers, and WARC files that warcio writes of them."""

import io
import random
from pathlib import Path
from typing import Any

from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

SENTENCES = (
    "Der Gemeinderat hat am Dienstag beschlossen, die alte Brücke nicht abzureißen, sondern sie zu sanieren.",
    "Die Kosten werden auf rund vier Millionen geschätzt, von denen die Stadt nur einen Teil trägt.",
    "In den kommenden Jahren soll außerdem ein Steg für Fußgänger gebaut werden.",
    "Bürgermeisterin Anna Koch sprach von einem guten Tag für die Gemeinde und dankte allen Beteiligten.",
)
_BEFORE = (
    '<div class="cookie-banner" id="cookie-consent">Diese Seite verwendet Cookies. <button>Ja</button></div>'
    '<header><nav><ul><li><a href="/p">Politik</a></li><li><a href="/s">Sport</a></li></ul></nav></header>'
)
_AFTER = (
    '<aside class="related"><ul><li><a href="/a">Streit um den Radweg</a></li></ul></aside>'
    '<footer>© 2023 Tagblatt · <a href="/i">Impressum</a></footer>'
)
SURROUNDINGS = ("Cookies", "Politik", "Radweg", "Impressum")


def page(body: str, head: str = "") -> str:
    """A page whose language is given wrongly."""
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head}<title>Zur Brücke</title></head>'
        f"<body>{_BEFORE}{body}{_AFTER}</body></html>"
    )


_POSTS = tuple(f"{first} {second}" for first in SENTENCES for second in SENTENCES if first != second)
_MARKUP = {
    "article": (SENTENCES, "<main><article><h1>Brücke</h1>", "<p>{}</p>", "</article></main>"),
    "divs": (SENTENCES, '<div id="content">', "<div>{}</div>", "</div>"),
    "dialogue": (SENTENCES, "<article><h1>Brücke</h1>", "<p><b>Koch:</b> {}</p>", "</article>"),
    "phpBB": (
        _POSTS,
        '<div id="page-body"><h2>Brücke</h2>',
        '<div class="post bg1"><div class="inner"><dl class="postprofile"><dt>Eva</dt></dl>'
        '<div class="postbody"><p class="author">von Eva</p><div class="content">{}</div></div></div></div>',
        "</div>",
    ),
    "phpBB3": (
        _POSTS,
        '<div id="page-body" class="page-body"><h2 class="topic-title"><a href="/t">Brücke</a></h2>',
        '<div id="p1" class="post has-profile bg2"><div class="inner"><dl class="postprofile"><dt>Eva'
        '</dt></dl><div class="postbody"><div><h3><a href="#p1">Re: Brücke</a></h3>'
        '<p class="author">von Eva</p><div class="content">{}</div></div></div></div></div>',
        "</div>",
    ),
    "vBulletin": (
        _POSTS,
        "<h1>Brücke</h1>",
        '<table class="tborder"><tr><td class="alt2">Eva</td></tr>'
        '<tr><td class="alt1"><div id="post_message_1">{}</div></td></tr></table>',
        "",
    ),
    "WoltLab": (
        _POSTS,
        '<ul class="wbbThreadPostList messageList">',
        '<li><article class="wbbPost message"><aside class="messageSidebar">Eva</aside>'
        '<div class="messageBody"><div class="messageText"><p>{}</p></div></div></article></li>',
        "</ul>",
    ),
    "XenForo": (
        _POSTS,
        '<div class="p-body-content"><div class="block block--messages"><div class="block-body">',
        '<article class="message message--post js-post" data-author="Eva"><div class="message-cell">'
        '<section class="message-user"><h4 class="message-name">Eva</h4></section></div>'
        '<div class="message-content"><article class="message-body"><div class="bbWrapper">{}</div></article>'
        '</div><footer class="message-footer"><a href="#">Zitieren</a></footer></article>',
        "</div></div></div>",
    ),
    "comments": (
        _POSTS,
        '<h1>Brücke</h1><ul class="comment-list" id="comments">',
        '<li class="comment"><p>{}</p></li>',
        "</ul>",
    ),
    "recipe": (("200 g Mehl", "3 Eier"), "<h1>Kuchen</h1><ul>", "<li>{}</li>", f"</ul><p>{SENTENCES[1]}</p>"),
    "table": (("Köln", "1.080.000"), f"<p>{SENTENCES[0]}</p><table><tr>", "<td>{}</td>", "</tr></table>"),
    "song": (
        ("Am Fluss, da steht ein alter Baum", "der träumt bei Nacht denselben Traum"),
        "<div><h1>Lied</h1>",
        "{}<br>",
        "</div>",
    ),
    "short": (("Der Laden ist heute geschlossen.",), "", "<p>{}</p>", ""),
}
PIECES = {name: pieces for name, (pieces, *_) in _MARKUP.items()}
"""Text of each page, or some of it."""
KINDS = {
    name: page(before + "".join(around.format(piece) for piece in pieces) + after)
    for name, (pieces, before, around, after) in _MARKUP.items()
}
FORUMS = ("phpBB", "phpBB3", "vBulletin", "WoltLab", "XenForo", "comments")


def threads(kind: str) -> list[tuple[str, list[str]]]:
    """Pages of a forum, and their posts: 2 to 15 of 50 to 900 characters."""
    _, before, around, after = _MARKUP[kind]
    words, chance = " ".join(SENTENCES).split(), random.Random(kind)
    found = []
    for n_posts in (2, 3, 5, 10, 15):
        for length in (50, 90, 170, 250, 330, 500, 900):
            posts = [" ".join(chance.choices(words, k=length))[:length].strip() for _ in range(n_posts)]
            found.append((page(before + "".join(map(around.format, posts)) + after), posts))
    return found


def response(writer: WARCWriter, uri: str, body: bytes, **headers: str) -> Any:
    """A record of an HTTP response; `status` and other headers by name, `_` for `-`."""
    status = headers.pop("status", "200 OK")
    fields = {"content_type": "text/html"} | headers
    http = StatusAndHeaders(
        status, [(name.replace("_", "-"), value) for name, value in fields.items()], protocol="HTTP/1.1"
    )
    return writer.create_warc_record(uri, "response", payload=io.BytesIO(body), http_headers=http)


def write_warc(path: Path, records: Any) -> Path:
    """A WARC of what `records`, given the writer, yields."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "tests"}))
        for record in records(writer):
            writer.write_record(record)
    return path


def records_by_warcio(path: Path) -> list[tuple[str, str, str]]:
    """(type, id, URI) of the records of a sound file."""
    with path.open("rb") as file:
        return [
            (
                record.rec_type,
                record.rec_headers.get_header("WARC-Record-ID"),
                record.rec_headers.get_header("WARC-Target-URI"),
            )
            for record in ArchiveIterator(file)
        ]
