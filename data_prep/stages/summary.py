"""Sum up what the stages of a command did: `stats.json`, `report.md`, and a few lines for the terminal."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.reading.documents import read_documents
from data_prep.reading.rejects import Rejects, losses_in_short, reject_in_short
from data_prep.stages.corpus import KEPT, Call
from data_prep.stages.input_files import input_files, record_sizes
from data_prep.stages.pipeline import Stage, run_stages, write_json
from data_prep.text import changes
from lit_gpt.cli import InputError
from lit_gpt.files import write_atomically

WITHOUT_SIGNAL = "without_signal"
"""In stats.json: documents that lack a signal that has a limit, by signal."""
EXAMPLES = 3
EXAMPLE_CHARACTERS = 400
UNITS = ("documents", "text_bytes", "tokens")
_DIFFERS_BY_RUN = ("cpu_seconds", "peak_megabytes", "tasks")


def run_and_report(
    plan: Callable[[list[Path], Any, Path], list[Stage]], options: Any, command: Path, pages: bool = False
) -> None:
    """The main function of a command over a corpus: plan, run or submit, print the counts.

    Args:
        plan: makes the stages of (files, options, folder).
        command: the command's file, which SLURM jobs run.
        pages: whether the command reads web pages.
    """
    files = input_files(options, options.stage is not None, pages)
    stages = plan(files, options, options.output)
    record_sizes(files, options.output)
    if run_stages(stages, options, options.output, command):
        print(in_short(options.output))


def finished_parts(output: Path) -> list[Path]:
    """Folders of the commands over the corpus that prepare.py has finished, in their order."""
    parts = (output / name for name in ("extract", "clean", "dedup", "lines", "minhash"))
    return [part for part in parts if (part / "stats.json").exists()]


def require_documents(output: Path, rank: int, world_size: int) -> None:
    """
    Raises:
        InputError: the commands over the corpus have kept nothing.
    """
    parts = finished_parts(output)
    counts = [json.loads((part / "stats.json").read_text(encoding="utf-8")) for part in parts]
    if counts[-1]["kept"]["documents"]:
        return
    reasons: Counter[str] = Counter()
    for stats in counts:
        reasons.update({reason: count["documents"] for reason, count in stats["excluded"].items()})
    most = "".join(f", {count:,} of them by {reason}" for reason, count in reasons.most_common(1))
    n_read = counts[0]["read"]["documents"]
    raise InputError(
        f"no document is left: all {n_read:,} that were read are dropped{most}; "
        f"{output / 'report.html'} shows them. Give other limits and another --output"
    )


def with_summary(stages: list[Stage], title: str) -> list[Stage]:
    """The stages, and one after them that writes their `stats.json` and `report.md`."""
    folder, names = stages[0].folder, [stage.name for stage in stages]
    summarise = Call("counts", partial(_summarise, folder, title, names))
    return [*stages, Stage(f"{names[0].partition('-')[0]}-summary", [summarise], 1, folder)]


def _summarise(folder: Path, title: str, stages: list[str], rank: int, world_size: int) -> None:
    stats = collect(folder, stages)
    write_json(folder / "stats.json", stats)
    write_atomically(folder / "report.md", report(folder, title, stats))


def collect(folder: Path, stages: list[str]) -> dict[str, Any]:
    """`read`, `set_aside`, `kept` and `excluded` by reason as the last stage counted them; all by stage."""
    counts = {stage: _stage_counts(folder / "logs" / stage / "stats") for stage in stages}
    last = counts[stages[-1]]
    without_signal = _below(WITHOUT_SIGNAL, last)
    places = sorted({name.rpartition("/")[0] for name in last if name.startswith("excluded/")})
    return {
        "settings": json.loads((folder / "settings.json").read_text(encoding="utf-8")),
        "read": {unit: last[unit] for unit in ("documents", "text_bytes")},
        "set_aside": _below("set_aside", last),
        "losses": _losses(folder / "set_aside"),
        "changed": changes.counts_of(last),
        changes.NOT_REPAIRED: dict(sorted(_below(changes.NOT_REPAIRED, last).items())),
        "kept": {unit: last[f"{KEPT}/{unit}"] for unit in UNITS},
        "excluded": {
            place.removeprefix("excluded/"): {unit: last[f"{place}/{unit}"] for unit in UNITS}
            for place in places
        },
        **({WITHOUT_SIGNAL: without_signal} if without_signal else {}),
        "stages": {
            stage: {name: count for name, count in sums.items() if "/" not in name}
            for stage, sums in counts.items()
        },
    }


def _below(place: str, counts: Counter[str]) -> dict[str, int]:
    return {
        name.removeprefix(f"{place}/"): count
        for name, count in counts.items()
        if name.startswith(f"{place}/")
    }


def _losses(folder: Path) -> list[str]:
    """The input files that could not be read to their end, and how much of each is lost."""
    losses = []
    for path in sorted(folder.glob("*.json")):  # one at a time: of a crawl they name millions of records
        places = json.loads(path.read_text(encoding="utf-8"))
        losses += Rejects(places=[(each["place"], each["reason"]) for each in places]).losses()
    return losses


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
    """The counts of a finished command for the terminal."""
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    read, kept = stats["read"], stats["kept"]
    lines = [
        f"read {read['documents']:,} documents, {read['text_bytes']:,} bytes of text; "
        f"kept {kept['documents']:,}, {kept['text_bytes']:,} bytes"
    ]
    lines += [f"  {count['documents']:>12,}  {reason}" for reason, count in _by_size(stats["excluded"])]
    lines += changes.in_short(stats) + _rejected(stats) + _without_signal(stats)
    page = folder / "report.md"
    if not page.exists():
        page = folder / "report.html"  # of an earlier revision
    return "\n".join([*lines, f"counts: {folder / 'stats.json'}, examples: {page}"])


def _by_size(excluded: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int]]]:
    return sorted(excluded.items(), key=lambda item: -item[1]["documents"])


def _rejected(stats: dict[str, Any]) -> list[str]:
    lines = [
        f"  {count:>12,}  {reject_in_short(reason, stats['settings'])}"
        for reason, count in stats["set_aside"].items()
    ]
    return lines + losses_in_short(stats.get("losses", []))  # earlier revisions wrote no losses


def _without_signal(stats: dict[str, Any]) -> list[str]:
    n_read = stats["read"]["documents"]
    return [
        f"no document has the signal {name}: its limit drops nothing; check the name in --signals"
        if count == n_read
        else f"  {count:>12,}  without the signal {name}, not judged by its limit"
        for name, count in stats.get(WITHOUT_SIGNAL, {}).items()
        if count
    ]


def report(folder: Path, title: str, stats: dict[str, Any]) -> str:
    """Markdown: documents, bytes and tokens by reason, with examples. Text from documents is indented."""
    rows = [("kept", KEPT, stats["kept"])]
    rows += [(reason, f"excluded/{reason}", count) for reason, count in _by_size(stats["excluded"])]
    n_read = stats["read"]["documents"]
    lines = [
        f"# {title}\n",
        f"{n_read:,} documents, {stats['read']['text_bytes']:,} bytes of text were read.\n",
        "| | documents | share | bytes | tokens |\n|---|---:|---:|---:|---:|",
    ]
    for name, _, count in rows:
        share = count["documents"] / max(n_read, 1)
        tokens = f"{count['tokens']:,}" if count["tokens"] else "–"  # counted only with a tokenizer
        numbers = f"{count['documents']:,} | {share:.2%} | {count['text_bytes']:,} | {tokens}"
        lines.append(f"| {name} | {numbers} |")
    lines += ["", *_rejected(stats), *_without_signal(stats), *changes.as_markdown(folder, stats)]
    for name, place, _ in rows:
        lines += [f"\n## {name}\n", *_examples(folder / place)]
    return "\n".join(lines) + "\n"


def _examples(folder: Path) -> list[str]:
    blocks = []
    documents = read_documents(sorted(folder.glob("*.jsonl.zst")), Rejects())
    for document, _ in zip(documents, range(EXAMPLES), strict=False):
        why = {} if folder.name == KEPT else document.metadata["excluded"]
        found = f": {why['value']} (limit {why['limit']})" if "value" in why else ""
        example = f"{document.id}{found}\n\n{document.text[:EXAMPLE_CHARACTERS]}"
        blocks.append(textwrap.indent(example, "    ", lambda line: True) + "\n")
    return blocks


def record_origin(inputs: Path, parts: dict[str, Path], path: Path, rank: int, world_size: int) -> None:
    """Write what the store's manifest quotes: the input files with hashes, all settings and counts.

    Args:
        inputs: folder of the descriptions of the input files.
        parts: folder of each command over the corpus, by name.
    """
    origin: dict[str, Any] = {
        "inputs": [json.loads(file.read_text("utf-8")) for file in sorted(inputs.glob("*.json"))]
    }
    for name, folder in parts.items():
        stats = json.loads((folder / "stats.json").read_text("utf-8"))
        stats["settings"].pop("files")
        for counts in stats["stages"].values():
            for measure in _DIFFERS_BY_RUN:
                counts.pop(measure, None)
        origin[name] = stats
    write_json(path, origin)
