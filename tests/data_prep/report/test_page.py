"""The page for those who decide about a limit: right counts, true examples, and text that stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest
import xxhash
import zstandard

from data_prep import prepare
from data_prep.filters.limits import Limits
from data_prep.report import page
from data_prep.report.examples import CHARACTERS, RECORDS, sample
from data_prep.report.places import Marker
from data_prep.stages.pipeline import run_stages, write_json
from tests.data_prep.corpus_tools import contents, documents, read_zst, stats, write_jsonl
from tests.data_prep.made_crawl import Crawl

EVIL = "</div><script>alert(1)</script><img src=x onerror=alert(1)>&lt;\n\u202egnp.exe\u200b {{ 7*7 }}"


class Parsed(HTMLParser):
    """Tags, rows of the table, and by heading the text of each element with a class."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.sections, self.open = set(), [], {}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("meta", "img", "br"):
            return
        kind = dict(attributes).get("class") or tag
        self.open.append(kind)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "h2":
            self.heading = ""
        if kind in ("about", "text"):
            self.sections[self.heading].append((kind, []))

    def handle_endtag(self, tag):
        if tag == "h2":
            self.sections[self.heading] = []
        self.open.pop()

    def handle_data(self, data):
        if "td" in self.open:
            self.rows[-1][-1] += data
        elif "h2" in self.open:
            self.heading += data
        elif {"about", "text"} & set(self.open):
            self.sections[self.heading][-1][1].append(data)

    def examples(self, heading):
        """(about, text) of each."""
        found = ["".join(parts) for _, parts in self.sections[heading]]
        return list(zip(found[0::2], found[1::2], strict=True))


def run(files, output, tasks):
    options = prepare.Options(input=list(map(str, files)), output=output, tasks=tasks, workers=1)
    options.html_remains = False  # the texts shall keep theirs
    run_stages(prepare.corpus_stages(files, options)[0], options, output, Path("-"))
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    pages = Crawl(seed=3).pages(n_sites=5, n_pages=30)
    pages += [{"id": f"{EVIL} {number}", "text": EVIL, "url": EVIL} for number in range(2)]
    files = [write_jsonl(folder / f"{n}.jsonl", pages[n::3]) for n in range(3)]
    return run(files, folder / "one", 1), run(files, folder / "three", 3)


def test_the_number_of_tasks_changes_nothing(made):
    one, three = (folder / "report.html" for folder in made)
    assert one.read_bytes() == three.read_bytes()
    assert contents(one.parent) == contents(three.parent)


def test_the_counts_are_those_of_the_files(made):
    parsed = Parsed(made[0] / "report.html")
    rows = [[cell.replace(",", "") for cell in row] for row in parsed.rows if row]
    assert rows[0][1:3] == ["read", "152"]
    assert rows[-1][1] == "left"
    assert int(rows[-1][2]) == len(documents(made[0] / "lines" / "documents"))
    shown = {(row[0], row[1]): (int(row[2]), int(row[4])) for row in rows[1:-1]}
    excluded = {(path.parts[-3], path.name): documents(path) for path in made[0].glob("*/excluded/*")}
    cut = shown.pop(("dedup", "repeated paragraphs"))
    assert shown == {
        place: (len(fallen), sum(len(each["text"].encode()) for each in fallen))
        for place, fallen in excluded.items()
    }
    assert len(shown) >= 4
    read, left = stats(made[0] / "clean")["read"], stats(made[0] / "lines")["kept"]
    assert read["documents"] == sum(n for n, _ in shown.values()) + left["documents"]
    assert read["text_bytes"] == sum(size for _, size in [*shown.values(), cut]) + left["text_bytes"]
    headings = {f"{step}: {reason}" for step, reason in shown} | {"dedup: repeated paragraphs", "left"}
    assert set(parsed.sections) == headings
    page = (made[0] / "report.html").read_text(encoding="utf-8")
    assert "<strong>0 documents" not in page
    assert f"Text that documents lost which stay: {cut[1]:,} bytes." in page


def test_an_example_is_the_record_it_names(made):
    parsed = Parsed(made[0] / "report.html")
    for heading in parsed.sections.keys() - {"left", "dedup: repeated paragraphs"}:
        step, _, reason = heading.partition(": ")
        folder = made[0] / step / "excluded" / reason
        examples = parsed.examples(heading)
        assert len(examples) == min(10, len(documents(folder)))
        for about, text in examples:
            path, line = re.search(rf"({step}/excluded/{reason}/\d+\.jsonl\.zst):(\d+)", about).groups()
            record = read_zst(made[0] / path)[int(line) - 1]
            if record["text"] != EVIL:
                assert text in record["text"]
                assert record["id"] in about
                assert len(text) == min(CHARACTERS, len(record["text"]))
            why = record["excluded"]
            assert why["reason"] == reason
            if "value" in why:
                assert about.strip().startswith(f"{why['value']}, the limit is {why['limit']} ·")


def test_text_of_documents_is_shown_as_text(made):
    parsed, source = Parsed(made[0] / "report.html"), (made[0] / "report.html").read_text("utf-8")
    assert not parsed.tags & {"script", "iframe", "link", "form"}
    assert source.count("<img ") == 1
    assert not re.search("[\u200b\u202e]|https?:|alert\\(1\\)<", source)
    assert "default-src 'none'" in source
    named = EVIL.replace("\u202e", "RIGHT-TO-LEFT OVERRIDE").replace("\u200b", "ZERO WIDTH SPACE")
    [(about, text), _] = [each for each in parsed.examples("clean: min_words") if "alert" in each[0]]
    assert text == named
    assert about.count(named) == 2  # id and URL


def write_excluded(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in records.items():
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        (folder / f"{name:06d}.jsonl.zst").write_bytes(zstandard.compress(data))


def test_few_of_many_documents_are_read(tmp_path):
    """The first 50 of every second of 40 files; the ten of them with the smallest hashes are shown."""
    why = {"reason": "min_words", "limit": 50}
    records = {
        file: [{"id": f"{file}/{n}", "text": "Kurz.", "excluded": why | {"value": n % 50}} for n in range(60)]
        for file in range(40)
    }
    records[0][0]["excluded"]["value"] = None  # was infinite
    write_excluded(tmp_path / "excluded/min_words", records)
    found = sample(tmp_path, "min_words", Marker())
    read = [f"{file}/{n}" for file in range(0, 40, 2) for n in range(50)]
    assert found.n_read == len(read) == RECORDS
    wanted = sorted(read, key=lambda each: xxhash.xxh3_64_intdigest(each.encode()))[:10]
    assert ["".join(piece.text for piece in each.shown.id) for each in found.examples] == wanted
    assert found.values.tolist() == [n for n in range(49, -1, -1) for _ in range(20)][:-1]
    assert page.nearness(found) == [("a tenth", 45), ("a quarter", 37), ("half", 25)]
    end, bars = page.bars(found)
    assert (end, bars[0], sum(count for count, _ in bars)) == (2, (20, 0.5), 20 * 48)


def test_the_place_that_counts_is_seen_in_a_long_text(tmp_path):
    text = "\n".join([*map(str, range(9000)), "Zum Mitnehmen", "Zum Mitnehmen", *map(str, range(9000, 9900))])
    why = {"reason": "max_dup_lines_frac", "value": 0.3, "limit": 0.263}
    folder = tmp_path / "excluded/max_dup_lines_frac"
    write_excluded(folder, {0: [{"id": "a", "text": text, "excluded": why}]})
    [example] = sample(tmp_path, "max_dup_lines_frac", Marker()).examples
    assert marked(example.shown) == ["Zum Mitnehmen"]
    first = example.shown.first
    assert text_of(example.shown) == text[first : first + CHARACTERS]
    assert example.shown.n_characters == len(text)


def marked(excerpt):
    return [piece.text for piece in excerpt.text if piece.is_marked]


def text_of(excerpt):
    return "".join(piece.text for piece in excerpt.text)


WORDS = " ".join(f"Wort{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(300))


@pytest.mark.parametrize("at", [{"like_at": "000000.jsonl.zst:2"}, {"like_at": "../x:2"}, {}])
def test_a_near_duplicate_is_shown_beside_the_one_that_stays(tmp_path, at):
    why = {"reason": "near_duplicate", "value": 0.9, "limit": 0.7, "like": EVIL} | at
    write_excluded(tmp_path / "documents", {0: [{"id": "a", "text": "Anders."}, {"id": EVIL, "text": WORDS}]})
    copy = WORDS.replace("Wortgh", "NEU")
    write_excluded(tmp_path / "excluded/near_duplicate", {0: [{"id": "b", "text": copy, "excluded": why}]})
    counts = {"documents": 1, "text_bytes": len(copy)}
    counted = {"read": counts, "kept": counts, "excluded": {"near_duplicate": counts}}
    write_json(tmp_path / "stats.json", counted | {"set_aside": {}, "settings": {"words": 5}})
    page.write_report({"minhash": tmp_path}, tmp_path, "de", None, 0, 1)
    parsed = Parsed(tmp_path / "report.html")
    _, (about, text) = parsed.examples("minhash: near_duplicate")
    assert "<script>alert(1)</script>" in about
    assert "script" not in parsed.tags
    [example] = sample(tmp_path, "near_duplicate", Marker()).examples
    assert text == text_of(example.stays)
    assert "".join(piece.text for piece in example.stays.id).startswith("</div>")
    if at != {"like_at": "000000.jsonl.zst:2"}:
        assert text_of(example.stays) == ""
        return
    for excerpt, text in ((example.shown, copy), (example.stays, WORDS)):
        assert text_of(excerpt) == text[excerpt.first : excerpt.first + CHARACTERS]
        assert "  ".join(marked(excerpt)) == re.sub("NEU|Wortgh", "", text_of(excerpt)).replace("  ", "  ")
    assert example.shown.first == example.stays.first > 0


def test_every_limit_has_a_meaning_and_its_option():
    for name in vars(Limits()):
        if name.startswith(("min_", "max_")):
            reason = f"{name}_3" if "ngram" in name else name
            assert page.meaning(reason)[1].startswith(f"--{name}")
    assert page.meaning("max_signal_ccnet_perplexity")[1] == "--signals"
    assert page.meaning("near_duplicate")[1] == "--min_similarity"
    assert page.meaning("only_repeats")[0]
