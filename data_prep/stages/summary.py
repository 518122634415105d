"""What the stages did, from the counts of their tasks: `stats.json`, and `report.html` on one page."""

import html
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.reading.documents import SetAside, losses_in_short, read_documents
from data_prep.stages.corpus import KEPT
from data_prep.stages.pipeline import write_json
from lit_gpt.files import write_atomically

EXAMPLES = 3
EXAMPLE_CHARACTERS = 400
UNITS = ("documents", "text_bytes", "tokens")


class Summarise(PipelineStep):
    """The last stage, a single task."""

    type, name = "SUMMARISE", "counts"

    def __init__(self, folder: Path, title: str, stages: list[str]) -> None:
        super().__init__()
        self.folder = folder
        self.title = title
        self.stages = stages

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Yields nothing."""
        stats = collect(self.folder, self.stages)
        write_json(self.folder / "stats.json", stats)
        write_atomically(self.folder / "report.html", report(self.folder, self.title, stats))
        yield from ()


def collect(folder: Path, stages: list[str]) -> dict[str, Any]:
    """`read`, `set_aside`, `kept` and `excluded` by reason as the last stage counted them; all by stage."""
    counts = {stage: _stage_counts(folder / "logs" / stage / "stats") for stage in stages}
    last = counts[stages[-1]]
    places = sorted({name.rpartition("/")[0] for name in last if name.startswith("excluded/")})
    return {
        "settings": json.loads((folder / "settings.json").read_text(encoding="utf-8")),
        "read": {unit: last[unit] for unit in ("documents", "text_bytes")},
        "set_aside": {
            name.removeprefix("set_aside/"): count
            for name, count in last.items()
            if name.startswith("set_aside/")
        },
        "losses": _losses(folder / "set_aside"),
        "kept": {unit: last[f"{KEPT}/{unit}"] for unit in UNITS},
        "excluded": {
            place.removeprefix("excluded/"): {unit: last[f"{place}/{unit}"] for unit in UNITS}
            for place in places
        },
        "stages": {
            stage: {name: count for name, count in sums.items() if "/" not in name}
            for stage, sums in counts.items()
        },
    }


def _losses(folder: Path) -> list[str]:
    """The input files that could not be read to their end, and how much of each is lost."""
    set_aside = SetAside()
    for path in sorted(folder.glob("*.json")):
        places = json.loads(path.read_text(encoding="utf-8"))
        set_aside.places += [(each["place"], each["reason"]) for each in places]
    return set_aside.losses()


def _stage_counts(folder: Path) -> Counter[str]:
    sums: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json")):
        sums["tasks"] += 1
        for step in json.loads(path.read_text(encoding="utf-8")):
            for name, value in step["stats"].items():
                total = value["total"] if isinstance(value, dict) else value
                sums[name] = max(sums[name], total) if name == "peak_megabytes" else sums[name] + total
    for name, value in sums.items():
        sums[name] = round(value, 1) if isinstance(value, float) else value
    return sums


def in_short(folder: Path) -> str:
    """A few lines for the terminal."""
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    read, kept = stats["read"], stats["kept"]
    lines = [
        f"read {read['documents']:,} documents, {read['text_bytes']:,} bytes of text; "
        f"kept {kept['documents']:,}, {kept['text_bytes']:,} bytes"
    ]
    lines += [f"  {count['documents']:>12,}  {reason}" for reason, count in _by_size(stats["excluded"])]
    lines += [f"  {count:>12,}  lines set aside: {reason}" for reason, count in stats["set_aside"].items()]
    lines += losses_in_short(stats.get("losses", []))  # earlier revisions wrote none
    return "\n".join([*lines, f"counts and examples: {folder / 'report.html'}"])


def _by_size(excluded: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int]]]:
    return sorted(excluded.items(), key=lambda item: -item[1]["documents"])


def report(folder: Path, title: str, stats: dict[str, Any]) -> str:
    """The page: counts, bytes and tokens by reason with examples, what the stages used, the settings."""
    rows = [("kept", KEPT, stats["kept"])]
    rows += [(reason, f"excluded/{reason}", count) for reason, count in _by_size(stats["excluded"])]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>Read: {documents:,} documents, {text_bytes:,} bytes of text.</p>".format(**stats["read"]),
        _table(rows, stats["read"]),
        _counts("Lines set aside", stats["set_aside"]) if stats["set_aside"] else "",
        *(f"<p>{html.escape(loss)}</p>" for loss in losses_in_short(stats["losses"])),
        *(_examples(name, folder / place) for name, place, _ in rows),
        *(_counts(f"Stage {stage}", counts) for stage, counts in stats["stages"].items()),
        f"<h2>Settings</h2><pre>{html.escape(_settings(stats['settings']))}</pre>",
    ]
    return f"{_HEAD.format(html.escape(title))}{''.join(body)}</body></html>\n"


_HEAD = """<!DOCTYPE html><html><head><meta charset="utf-8"><title>{}</title><style>
body {{ font: 15px sans-serif; margin: 2em auto; max-width: 70em; }} table {{ border-collapse: collapse; }}
td, th {{ padding: .2em .8em; text-align: right; }} td:first-child, th:first-child {{ text-align: left; }}
tr:nth-child(even) {{ background: #f2f2f2; }} .bar {{ background: #4a7ba6; height: .8em; }}
pre {{ white-space: pre-wrap; background: #f8f8f4; padding: .6em; }} td.wide {{ width: 18em; }}
</style></head><body>"""


def _table(rows: list[tuple[str, str, dict[str, int]]], read: dict[str, int]) -> str:
    lines = [
        "<table><tr><th></th><th>documents</th><th>share</th><th></th><th>bytes</th><th>tokens</th></tr>"
    ]
    for name, _, count in rows:
        share = count["documents"] / max(read["documents"], 1)
        lines.append(
            f"<tr><td>{html.escape(name)}</td><td>{count['documents']:,}</td><td>{share:.2%}</td>"
            f'<td class="wide"><div class="bar" style="width:{share:.2%}"></div></td>'
            f"<td>{count['text_bytes']:,}</td><td>{count['tokens'] or '–'}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _counts(title: str, counts: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in counts.items()
    )
    return f"<h2>{html.escape(title)}</h2><table>{cells}</table>"


def _examples(name: str, folder: Path) -> str:
    """The first documents of the first file that has any."""
    parts = [f"<h2>{html.escape(name)}</h2>"]
    documents = read_documents(sorted(folder.glob("*.jsonl.zst")), SetAside())
    for document, _ in zip(documents, range(EXAMPLES), strict=False):
        why = document.metadata.get("excluded", {})
        found = f": {why['value']} (limit {why['limit']})" if "value" in why else ""
        parts.append(f"<p>{html.escape(document.id)}{html.escape(found)}</p>")
        parts.append(f"<pre>{html.escape(document.text[:EXAMPLE_CHARACTERS])}</pre>")
    return "".join(parts)


def _settings(settings: dict[str, Any]) -> str:
    files = settings.get("files", [])
    shown = settings | {"files": f"{len(files)} files, {files[0]} … {files[-1]}" if files else "none"}
    return json.dumps(shown, indent=1, ensure_ascii=False)
