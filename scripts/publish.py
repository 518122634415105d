#!/usr/bin/env python
"""Upload a model, its intermediate checkpoints and its datapoint log to the Hugging Face hub."""

import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import read_json
from lit_gpt.hf.importer import HFSource

MAIN = "main"
# Weights that were cut into other files would stay beside the new ones.
_OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_TEXTS = ("README.md", "LICENSE*")
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", *_TEXTS)
_LOG_FILES = ("*.parquet", "*.json", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", *_TEXTS)


@dataclass
class PublishOptions:
    """Upload to the Hugging Face hub what is given. The token is taken from HF_TOKEN and kept nowhere.

    After an interruption run it again: files that arrived are not sent twice.
    """

    repo_id: str
    """ORGANISATION/NAME of the model on the hub."""
    model: Path | None = None
    """Hugging Face folder of the model: the branch main."""
    checkpoints: Path | None = None
    """Folder of Hugging Face folders iter-N, as `scripts/create.sh --all` writes it: a branch for each."""
    datapoints: Path | None = None
    """The datapoint log, OUT/datapoints, or a folder with what `scripts/datapoints.py export` wrote: the data
    set REPO_ID-datapoints."""
    public: bool = False
    """Create repositories for all to see; otherwise they are private until that is changed on the hub."""
    dry_run: bool = False
    """Only show what would go where. Needs no token and no network."""


class Upload(NamedTuple):
    """A folder and where it goes."""

    repo_id: str
    repo_type: Literal["model", "dataset"]
    branch: str
    folder: Path
    files: dict[str, int]
    """Size in bytes, by path in the folder and in the repository."""


def main(options: PublishOptions) -> None:
    uploads = plan(options)
    print("\n".join(describe(uploads)), flush=True)
    if options.dry_run:
        return
    send(uploads, _token(), private=not options.public)


def plan(options: PublishOptions) -> list[Upload]:
    """List the uploads.

    Raises:
        InputError: nothing is given, a folder is not complete, or it holds what should not be published.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", options.repo_id, re.ASCII):
        raise InputError(f"--repo_id {options.repo_id} must be ORGANISATION/NAME")
    uploads = []
    if options.model is not None:
        uploads.append(Upload(options.repo_id, "model", MAIN, options.model, model_files(options.model)))
    if options.checkpoints is not None:
        found = options.checkpoints.glob("iter-*")
        folders = sorted(path for path in found if re.fullmatch(r"iter-\d+", path.name))
        if not folders:
            raise InputError(f"--checkpoints {options.checkpoints} has no folder iter-N")
        uploads += [Upload(options.repo_id, "model", path.name, path, model_files(path)) for path in folders]
    if options.datapoints is not None:
        repo_id, files = f"{options.repo_id}-datapoints", _files(options.datapoints, _LOG_FILES)
        uploads.append(Upload(repo_id, "dataset", MAIN, options.datapoints, files))
    if not uploads:
        raise InputError("nothing to publish: give --model, --checkpoints or --datapoints")
    return uploads


def model_files(folder: Path) -> dict[str, int]:
    """Size in bytes by name of the files of a Hugging Face folder.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    files = _files(folder, _MODEL_FILES)
    if below := [name for name in files if "/" in name]:
        raise InputError(f"{folder / below[0]} does not belong to a Hugging Face folder; move it away")
    for wanted in ("config.json", "tokenizer.json", "README.md"):
        if wanted not in files:
            raise InputError(
                f"{folder} has no {wanted}; scripts/create.sh writes folders with all that is needed"
            )
    for name in ("config.json", "tokenizer_config.json"):
        if name in files and "auto_map" in read_json(folder / name, "convert the checkpoint again"):
            raise InputError(
                f"{folder / name} names code of its own (auto_map), which no model of ours needs"
            )
    model = HFSource(folder)  # raises unless the weights are those that config.json describes
    if others := {name for name in files if name.endswith(".safetensors")} - model.weight_files:
        raise InputError(f"{folder / min(others)} is not part of the model; move it away")
    return files


def _files(folder: Path, patterns: tuple[str, ...]) -> dict[str, int]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            if path.is_symlink() or not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
                raise InputError(f"{path} is none of {', '.join(patterns)}; move it away")
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    if not files:
        raise InputError(f"{folder} is empty")
    return files


def describe(uploads: list[Upload]) -> Iterator[str]:
    """Every file with its size in bytes."""
    for upload in uploads:
        yield f"{upload.folder} -> {upload.repo_type} {upload.repo_id}, branch {upload.branch}"
        for name, size in upload.files.items():
            yield f"{size:>18,}  {name}"
    total = sum(sum(upload.files.values()) for upload in uploads)
    yield f"{total:>18,}  bytes in {sum(len(upload.files) for upload in uploads)} files"
    if any(upload.repo_type == "model" for upload in uploads):
        yield "weights that lie on these branches under other names will be deleted there"
    for upload in uploads:
        if upload.repo_type == "model" and not _names_licence(upload.folder / "README.md"):
            yield f"note: {upload.folder}/README.md has no licence (`license:` between its first `---`)"
        for name in sorted({"data.json", "merge.json"} & upload.files.keys()):
            yield f"note: {upload.folder}/{name} names folders of the machine that wrote it"


def send(uploads: list[Upload], token: str, private: bool) -> None:
    """Create what is missing on the hub, and upload.

    Raises:
        InputError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=token)
    for upload in uploads:
        name, kind, branch = upload.repo_id, upload.repo_type, upload.branch
        try:
            api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
            if branch != MAIN:
                api.create_branch(name, repo_type=kind, branch=branch, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                repo_type=kind,
                revision=branch,
                folder_path=upload.folder,
                allow_patterns=list(upload.files),
                delete_patterns=_OLD_WEIGHTS if kind == "model" else None,
                commit_message=f"Upload {upload.folder.resolve().name}",
            )
        except Exception as error:  # its transports raise errors of many types
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            raise InputError(
                f"{upload.folder} -> {kind} {name}, branch {branch}: {reason}; run this again to continue"
            ) from error
        print(f"{upload.folder}: sent", flush=True)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise InputError(
            "HF_TOKEN is not set: export a token that may write there (huggingface.co/settings/tokens)"
        )
    # Otherwise an error of the libraries below would quote it.
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(
            "HF_TOKEN has white space or other characters in it that no token has; export it again"
        )
    return token


def _names_licence(card: Path) -> bool:
    front_matter = card.read_text(encoding="utf-8").split("---")[1:2]
    return any(re.search(r"^license:", part, re.MULTILINE) for part in front_matter)


if __name__ == "__main__":
    run_command(PublishOptions, main)
