"""Remains of HTML go, as a browser shows them; text about HTML, code and placeholders stay."""

import pytest

from data_prep.text.html_remains import remove_html_remains

PROSE = "Der Gemeinderat hat am Dienstag beschlossen, die alte Brücke nicht abzureißen."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a&nbsp;b &auml;&Ouml; &#8222;x&#x201c; &amp;auml; &amp;amp;", "a\xa0b äÖ „x“ ä &"),
        ("A &amp; B &lt; C, 1 &gt; 0, &euro; &hellip; &#150;", "A & B < C, 1 > 0, € … –"),
        ("vector&lt;int&gt;", "vector<int>"),
        ("Zeile<br>Zeile<br />\nZeile<BR><br>Neu", "Zeile\nZeile\nZeile\n\nNeu"),
        ("<p>Eins</p><p>Zwei</p>\n<p>Drei", "Eins\n\nZwei\n\nDrei"),
        ("Titel</div>\n\n<div>Text</div>", "Titel\n\nText"),
        ("<ul>\n<li>eins</li>\n<li>zwei</li>\n</ul>\nText", "eins\nzwei\n\nText"),
        ("<tr><td>a</td><td>b</td></tr><tr><td>c</td></tr>", "a\tb\nc"),
        ("<b>fett</b>, <i class=\"x\">kursiv</i>", "fett, kursiv"),
        ("10<sup>6</sup> m<SUP class=x> 2 </SUP> 5<sup>1</sup>/<sub>2</sub> 10<sup>-6</sup> 10<sup>2,5</sup>",
         "10⁶ m² 5¹/₂ 10⁻⁶ 10^2,5"),
        ("H<sub>2</sub>O Na<sup>+</sup> 2<sup>n</sup> M<sup>lle</sup> Autor<sup>in</sup> Wort<sup>[1]</sup>",
         "H₂O Na⁺ 2ⁿ Mlle Autorin Wort[1]"),
        ("(&Ouml;VP) f&uuml;r =&nbsp;5 (&copy; 2020) (&quot;+)[^&quot;]*",
         "(ÖVP) für =\xa05 (© 2020) (\"+)[^\"]*"),
        ("a =&gt; b, return &#8222;x&ldquo;, = &bdquo;", "a => b, return „x“, = „"),
        ('a<iframe src="x" allowfullscreen></iframe>b<video controls src=a>c</video>', "abc"),
        ("<select><option value=1 selected>A</option></select>", "A"),
        ('<a href="?a>b">L</a> <a href="x"title="y">M</a> <a href=http://x.de/?a=1&b=2>N</a>', "L M N"),
        ('<time datetime="2020">2020</time>x<o:p></o:p><br / >y', "2020x\ny"),
        ("<details open><summary>S</summary>T</details>", "S\nT"),
        ('<b>x</b> <a href="x>L</a> <i §>y</i> <i>z</i>', 'x <a href="x>L</a> <i §>y</i> z'),
        ("Die CSSR<br>Javascript muss aktiviert sein, BBCode an, HTML aus\nHTML-Code ist aus.",
         "Die CSSR\nJavascript muss aktiviert sein, BBCode an, HTML aus\nHTML-Code ist aus."),
        ('« Ja »<br>« Nein »\n"Ja "<br>"Nein "<br>"Doch "', '« Ja »\n« Nein »\n"Ja "\n"Nein "\n"Doch "'),
        ('„Ja.“<br>„Nein.“<br>»Ja.«<br>»Nein.«', "„Ja.“\n„Nein.“\n»Ja.«\n»Nein.«"),
        ("„<i>Der Spiegel</i>“ sagt", "„Der Spiegel“ sagt"),
        ("<a href='http://x.de/?a=1' target=_blank>hier</a> <IMG SRC=x.gif WIDTH=3>", "hier "),
        ("x<script type=text/javascript>if (a<b) {}</script>y<style>p {}</style>z", "xyz"),
        ("x<!-- k > -- -->y<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\">z", "xyz"),
    ],
)  # fmt: skip
def test_shown_as_by_a_browser(text, shown):
    assert remove_html_remains(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a < b und c > d, List<T>, Map<String, List<A>>, <max@example.org>, <http://example.org/a>",
        "ls [<s>] <code> \\x<code> <link> <source>, drücke <Del>", "\\relative { <a c e>1 <b d>2 <a> }",
        "&lt;b&gt;fett&lt;/b&gt; und &lt;br /&gt;, &amp;lt;p&amp;gt;",
        "p = &copy; q=&image; return &sum; r = &amp;int;", 'Das Tag "<br>" und "er" <br>: "<b>"',
        "HTML-Code ist schön<br>und HTML an sich auch",
        "In HTML ist <b>dies</b> fett, und <br> bricht um, &auml; ist ein Umlaut.",
        "das Tag »<b>« mit »</b>«",
        "die <style>-Angabe steht vor </style>",
        "für &unbekannt; &#0; &#xd800; &#99999999; &; &#; & Co. AT&T &auml",
        "cp <source> <target>, mit <b> markierte Stellen", "<grins> na dann <g>, *<:-) Clown <3 </ironie>",
        "<Strg>+<Alt>+<Entf>, Seite <1> von <2>", "#include <stdio.h> std::vector<a> v; x<y>z; &c; R&B; &=",
        "Umgangen: </div> allein, <div", "Erlaubte XHTML-Tags: <a href=\"\" title=\"\"> <b> </b>",
    ],
)  # fmt: skip
def test_stays(text):
    assert remove_html_remains(text) is text
    assert remove_html_remains(f"{PROSE}\n{text}\n{PROSE}") == f"{PROSE}\n{text}\n{PROSE}"


@pytest.mark.parametrize(
    "piece",
    [
        *("<a ", "<b></b>", "<!--", "<script>", '<a x="', "&amp", "amp;", "&lt;b ", "&#", "<br> ", '"<b '),
        *('"<br>"', ' "<br>" "', "<sup>", "<sup 2", " JavaScript", "= &amp;", '<a x=">" y', "</b>"),
    ],
)  # fmt: skip
@pytest.mark.timeout(10)
def test_a_long_text_takes_no_longer_than_its_length(piece):
    """With a regular expression that goes back for each piece, one of these takes half a minute or more."""
    for text in (piece * 20_000, f"<br>&{piece * 20_000}"):
        remove_html_remains(text)
