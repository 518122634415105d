"""The step before the filters: what is changed, counted and shown, and what is not touched."""

import re
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import clean, prepare
from data_prep.clean import Options
from data_prep.passages import PASSAGES, documents, load_registers
from data_prep.report.page import write_report
from data_prep.stages.pipeline import run_stages
from data_prep.text.changes import Changes, examples_of
from data_prep.text.normalize import REPAIRS, normalize
from lit_gpt.cli import InputError
from tests.data_prep import corpus_tools
from tests.data_prep.corpus_tools import contents, stats, write_jsonl

KINDS = list(REPAIRS)
TEXTS = [text for _, text in islice(documents(1, load_registers(PASSAGES)), 60)]
PIECES = [
    *"ÃÂâÄÅ¤¶¼Ÿ€žœ„“–au\x84\x93\x81\x85\r\n\u0308\u0303\u2028&;#<>/ ", "\r\n", "&amp;", "&auml;",
    "&lt;", "&gt;", "&#60;", "&#62;", "&#97;", "&#x8a;", "&#13;", "<b>", "</b>", "<br>", "<!--", "-->",
    "<p class='x'>", "â€ž", "\u212b", "ï»¿", "Â ", "Â\xa0", "ÐŸ", "= ", "&int;", "<sup>", "</sup>", "2",
    "<a x", '"<br>"', "<i ", "</i>",
]  # fmt: skip
ODD = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text()


@settings(max_examples=300, deadline=None)
@given(ODD, st.lists(st.sampled_from(KINDS), unique=True))
def test_nothing_is_left_for_a_second_time(text, kinds):
    once, _ = normalize(text, kinds)
    again, changes = normalize(once, kinds)
    assert (again, changes) == (once, [])


@pytest.mark.parametrize(
    "text", ["&" + "amp;" * 50 + "auml;", "\u0308" * 50, "ä".encode().decode("latin-1") * 50]
)
def test_made_to_change_for_long(text):
    once, _ = normalize(text, KINDS)
    assert normalize(once, KINDS)[0] == once


@settings(deadline=None)
@given(st.text())
def test_only_letters_that_compose_are_composed(text):
    assert normalize(text, ["nfc"])[0] == unicodedata.normalize("NFC", text)


@pytest.mark.timeout(20)
def test_marks_without_end_are_not_sorted():
    piled = "u" + "\u0301\u0323" * 100_000
    assert normalize(piled, ["nfc"]) == (piled, [])
    most = "u" + "\u0301\u0323" * 15
    assert normalize(most, ["nfc"])[0] == unicodedata.normalize("NFC", most)


def test_a_line_end_is_one_line_feed():
    text = "a\r\nb\rc\n\rd\x0be\x0cf\u2028g\u2029h\x85i\x1cj"
    assert normalize(text, ["line_ends"])[0] == "a\nb\nc\n\nd\ne\nf\ng\nh\x85i\x1cj"


def run(records, folder, **options):
    file = write_jsonl(folder / "in.jsonl", records)
    clean.main(Options(input=[str(file)], output=folder / "out", workers=1, preset="none", **options))
    return folder / "out"


def test_a_clean_corpus_gives_the_same_bytes_with_and_without(tmp_path):
    records = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
    on, off = run(records, tmp_path / "on"), run(records, tmp_path / "off", **dict.fromkeys(KINDS, False))
    assert contents(on) == contents(off) != {}
    assert stats(on)["changed"] == {}
    assert not (on / "changed").exists()


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """For each kind, passages that need it; paragraphs of the others with CRLF."""
    broken = {
        "mojibake": lambda text: text.encode().decode("sloppy-windows-1252"),
        "html_remains": lambda text: text.replace("\n", "<br>").replace("ä", "&auml;") + "<br>",
        "line_ends": lambda text: text.replace("\n", "\r\n") + "\r\n",
        "nfc": lambda text: unicodedata.normalize("NFD", text),
    }
    needing = [text for text in TEXTS if "ä" in text and "\n" in text]
    records = [
        {"id": f"{kind} {number}", "text": broken[kind](text)}
        for number, text in enumerate(needing)
        for kind in KINDS
    ]
    folder = tmp_path_factory.mktemp("changed")
    files = [write_jsonl(folder / f"{n}.jsonl", records[n::3]) for n in range(3)]
    for tasks in (1, 3):
        options = Options(input=list(map(str, files)), output=folder / f"{tasks}", tasks=tasks, workers=1)
        options.preset = "none"
        clean.main(options)
    return needing, records, folder / "1", folder / "3"


def test_all_are_repaired_and_counted(changed):
    needing, records, output, _ = changed
    kept = {each["id"]: each["text"] for each in corpus_tools.documents(output / "documents")}
    assert len(kept) == len(records)
    for number, text in enumerate(needing):
        for kind in KINDS:
            assert kept[f"{kind} {number}"].rstrip("\n") == text
    counts = stats(output)["changed"]
    assert {kind: count["documents"] for kind, count in counts.items()} == dict.fromkeys(KINDS, len(needing))
    crlf = sum(each["text"].count("\r") for each in records)
    assert counts["line_ends"]["characters"] == crlf
    marks = len(unicodedata.normalize("NFD", "".join(needing))) - len("".join(needing))
    assert counts["nfc"]["characters"] == 2 * marks  # a letter and its mark


def test_the_number_of_tasks_changes_nothing(changed):
    _, _, one, three = changed
    assert contents(one) == contents(three)
    assert stats(one)["changed"] == stats(three)["changed"]
    examples = [
        {path.name: path.read_bytes() for path in (each / "changed").iterdir()} for each in (one, three)
    ]
    assert examples[0] == examples[1]
    assert len(examples[0]) == 3


def test_they_are_shown(changed):
    _, _, output, _ = changed
    write_report({"clean": output}, output.parent, "de", None, 0, 1)
    for name in (output.parent / "flow.md", output / "report.md", output.parent / "report.html"):
        page = name.read_text(encoding="utf-8")
        assert all(f"{kind} 0" in page for kind in KINDS), name
        assert "&auml;" in page.replace("&amp;", "&")
        assert "Changed, not dropped" in page
    assert "clean | changed text | 0 |" in (output.parent / "flow.md").read_text(encoding="utf-8")


def test_an_example_shows_what_nfc_replaces(tmp_path):
    changes = Changes(tmp_path)
    before = "\uf9d1 u\u0308 \u212b \U0001d15e"
    changes.add("a", [("nfc", before, unicodedata.normalize("NFC", before))])
    (tmp_path / "changed").mkdir()
    changes.end_file(0)
    [example] = examples_of(tmp_path, "nfc")
    assert example["before"] == r"\uf9d1 u\u0308 \u212b \U0001d15e"
    assert example["after"].startswith("六 ü Å ")


def spelled_out(character, levels):
    """A reference whose last digit is a reference, and so on."""
    text = f"&#{ord(character)};"
    for _ in range(levels):
        text = re.sub(r"(\d);", lambda found: f"&#{ord(found[1])};;", text, count=1)
    return text


def test_what_is_left_alone_is_counted(tmp_path, capsys):
    left = {
        "speaks of HTML": ["In HTML sagt man\n<b>fett</b> und &uuml;.", 'Das Zeichen "<br>"<br>'],
        "speaks of encodings": ["Als UTF-8 gelesen wird daraus\nfÃ¼r."],
        "has more than 30 marks on a letter": ["u" + "\u0301\u0323" * 20],
        "changes without end": [spelled_out("ü", 20)],
    }
    texts = [text for of_reason in left.values() for text in of_reason]
    records = [{"id": str(n), "text": text} for n, text in enumerate([*texts, spelled_out("ü", 5), "HTML"])]
    output = run(records, tmp_path)
    assert [each["text"] for each in corpus_tools.documents(output / "documents")] == [*texts, "ü", "HTML"]
    assert stats(output)["not_repaired"] == {reason: len(of_reason) for reason, of_reason in left.items()}
    write_report({"clean": output}, tmp_path, "de", None, 0, 1)
    for page in (capsys.readouterr().out, *map(Path.read_text, (output / "report.md", tmp_path / "flow.md"))):
        assert "not repaired: speaks of HTML" in page
    assert "<td>not repaired: speaks of encodings</td>" in (tmp_path / "report.html").read_text()


def test_other_repairs_are_other_settings(changed):
    _, _, output, _ = changed
    options = Options(input=[str(output.parent / "0.jsonl")], output=output, preset="none", nfc=False)
    with pytest.raises(InputError, match=r"begun with other settings \(.*nfc.*\)"):
        clean.plan([output.parent / "0.jsonl"], options, output)


def test_without_repairs_the_text_is_as_it_was(tmp_path):
    output = run([{"id": "a", "text": "fÃ¼r"}], tmp_path, **dict.fromkeys(KINDS, False))
    assert corpus_tools.documents(output / "documents") == [{"id": "a", "text": "fÃ¼r"}]


def test_paragraphs_are_compared_after_repair_and_only_the_first_step_repairs(tmp_path):
    paragraph = "Die Brücke über den Mühlbach wird im nächsten Jahr für die Fußgänger gebaut."
    forms = [paragraph, unicodedata.normalize("NFD", paragraph), paragraph.encode().decode("latin-1")]
    records = [
        {"id": str(number), "text": f"{form}\r\nAbsatz {number}."} for number, form in enumerate(forms)
    ]
    options = prepare.Options(
        input=[str(write_jsonl(tmp_path / "a.jsonl", records))],
        output=tmp_path / "out",
        preset="none",
        workers=1,
    )
    run_stages(prepare.corpus_stages([tmp_path / "a.jsonl"], options)[0], options, options.output, Path("-"))
    kept = corpus_tools.documents(options.output / "lines" / "documents")
    assert [each["text"] for each in kept] == [f"{paragraph}\nAbsatz 0.", "Absatz 1.", "Absatz 2."]
    assert stats(options.output / "lines")["settings"].keys().isdisjoint(KINDS)
