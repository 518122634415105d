"""Files that documents, docstrings and comments name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lit_gpt", "data_prep", "pretrain", "scripts", "cluster", "docs", "tests")
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]
SOURCES = [
    file
    for folder in FOLDERS[:5]
    for ending in ("py", "sh", "yaml")
    for file in (ROOT / folder).rglob(f"*.{ending}")
]
PATH = re.compile(r"(?<![\w./$}-])((?:[\w*-]+/)+[\w.*-]*[\w*])(?!\w|\{)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def named_in(file: Path) -> dict[str, list[Path]]:
    """Path-like words that begin with one of the folders, and links, with the places where each may lie.

    A document may also name what lies beside it, such as `exec/env.sh`.
    """
    text = file.read_text(encoding="utf-8")
    beside = [path.name for path in file.parent.iterdir() if path.is_dir()] if file.suffix == ".md" else []
    words = {match[1]: match[1].partition("/")[0] for match in PATH.finditer(text)}
    found = {word: [ROOT] for word, first in words.items() if first in FOLDERS}
    found |= {word: [ROOT, file.parent] for word, first in words.items() if first in beside}
    return found | ({link: [file.parent] for link in LINK.findall(text)} if file.suffix == ".md" else {})


@pytest.mark.parametrize("file", DOCUMENTS + SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_named_files_exist(file):
    missing = [word for word, bases in named_in(file).items() if not any(any(b.glob(word)) for b in bases)]
    assert not missing, f"{file} names what does not exist: {', '.join(missing)}"


def test_what_is_gone_is_found(tmp_path):
    (tmp_path / "exec").mkdir()
    document = tmp_path / "page.md"
    document.write_text(
        "`scripts/submit.py`, `scripts/gone.py --x`, exec/gone.sh, `runs/x`, [here](gone.md#part)"
    )
    gone = {word for word, bases in named_in(document).items() if not any(any(b.glob(word)) for b in bases)}
    assert gone == {"scripts/gone.py", "exec/gone.sh", "gone.md"}
