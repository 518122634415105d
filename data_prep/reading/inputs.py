"""Find the input files that paths, globs and datasets of the hub name, and look into each."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from data_prep.reading.documents import TEXT, Content, Document, read_documents
from data_prep.reading.pages import PAGE_SUFFIXES, holds_pages, read_pages
from data_prep.reading.rejects import LEFT_OUT, Rejects
from lit_gpt.cli import InputError

SUFFIXES = tuple(name + end for name in (".jsonl", ".ndjson", ".json") for end in ("", ".gz", ".zst"))
SUFFIXES += (".parquet",)
HUB = "hf://datasets/"
_HUB_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst")
_LOOKED_INTO = 200
_CONVERTED_BY = {
    (".warc.zst",): "make a .warc of it by `zstd -d`",
    (".arc", ".arc.gz"): "make a .warc.gz of it by `warcio recompress`",
}


def find_files(
    patterns: Sequence[str], suffixes: Sequence[str] = SUFFIXES, download: bool = True
) -> list[Path]:
    """The files that paths, globs and datasets of the Hugging Face hub name, in the order given, each sorted.

    Args:
        patterns: paths, globs, or `hf://datasets/OWNER/NAME[@REVISION][/GLOB]`.
        suffixes: refuse files of other kinds.
        download: fetch files that the hub's local cache lacks. Jobs may have no network.

    Raises:
        InputError: a pattern matches no file, two match the same, a file is empty or of another kind, or a
            dataset is not available.
    """
    files: list[Path] = []
    for pattern in patterns:
        if pattern.startswith(HUB):
            files += _from_hub(pattern, download)
            continue
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            what = "is a folder" if Path(pattern).is_dir() else "names no file"
            raise InputError(
                f"--input {pattern} {what}; give files or a glob of files: {', '.join(suffixes)}"
            )
        files += found
    _check(files, suffixes)
    return files


def _check(files: Sequence[Path], suffixes: Sequence[str]) -> None:
    for file in files:
        if holds_pages(file) and not set(PAGE_SUFFIXES) <= set(suffixes):
            raise InputError(f"--input {file} holds web pages; let data_prep/extract.py read them first")
        if not file.name.endswith(tuple(suffixes)):
            hint = next((how for end, how in _CONVERTED_BY.items() if file.name.endswith(end)), "convert it")
            raise InputError(f"--input {file} is none of {', '.join(suffixes)}; {hint} or leave it out")
        if not str(file).isprintable():  # the document table could not hold it
            raise InputError(f"--input {str(file)!r} has a name that is not printable UTF-8; rename it")
    times = Counter(map(os.path.abspath, files))  # links keep their names: a hub's cache links equal files
    for file in files:
        if (count := times[os.path.abspath(file)]) > 1:
            raise InputError(f"--input names {file} {count} times; name it once")
        if file.stat().st_size == 0 or not os.access(file, os.R_OK):
            what = "is empty" if file.stat().st_size == 0 else "may not be read"
            raise InputError(f"{file} {what}; leave it out of --input or fix it")


def _from_hub(name: str, download: bool) -> list[Path]:
    from huggingface_hub import snapshot_download  # takes a second to import

    owner, _, rest = name.removeprefix(HUB).partition("/")
    dataset, _, glob = rest.partition("/")
    dataset, _, revision = dataset.partition("@")
    patterns = [glob] if glob else list(_HUB_FILES)
    try:
        folder = Path(
            snapshot_download(
                f"{owner}/{dataset}",
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=patterns,
                local_files_only=not download,
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{name} cannot be had from the Hugging Face hub: {reason}") from error
    names = (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())
    found = [folder / name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise InputError(f"{name} holds no such files; give hf://datasets/OWNER/NAME/GLOB")
    return found


def look_into(
    files: Sequence[Path],
    text_fields: Sequence[str],
    id_fields: Sequence[str],
    needs_id: bool = False,
    content: Content = TEXT,
    max_bad_lines: int = Rejects.limit,
) -> None:
    """Read each file, or a sample of very many, up to its first document.

    Args:
        needs_id: refuse a document without an id.
        content: what the text must be.
        max_bad_lines: that a file may have.

    Raises:
        InputError: a file has no usable line, its objects have other fields, too many lines come before its
            first document, or no file has a document.
    """
    looked_into, documents = files[:: len(files) // _LOOKED_INTO + 1], []
    for file in looked_into:
        rejects = Rejects(max_bad_lines)
        documents_of_file = (
            read_pages(file, rejects)
            if holds_pages(file)
            else read_documents([file], rejects, text_fields, id_fields, content)
        )
        document = next(documents_of_file, None)
        unusable = (each for each in rejects.places if not each[1].startswith(LEFT_OUT))
        if document is None and (found := next(unusable, None)):
            place, reason = found
            hint = "a document is a JSON object in a line of its own, or a row of Parquet"
            hint = "get the file again, or leave it out" if holds_pages(file) else hint
            raise InputError(f"{file} has no document that can be used, {place}: {reason}; {hint}")
        if document is None:
            continue
        documents.append(document)
        if needs_id and document.id == f"{file}:{document.source_line}":
            raise InputError(_without_id(file, document, id_fields))
    if not documents and len(looked_into) == len(files):
        raise InputError(f"no document in {', '.join(map(str, files[:3]))}{' ...' * (len(files) > 3)}")


def _without_id(file: Path, document: Document, id_fields: Sequence[str]) -> str:
    given, wanted = ", ".join(document.metadata)[:200] or "(none)", ", ".join(id_fields)
    return (
        f"{file} has beside its text the fields {given}, none of {wanted}; name one by "
        "--id_fields, or leave that out to name documents by file and line"
    )
