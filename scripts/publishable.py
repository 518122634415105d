"""Folders that may be published: they are whole and hold nothing else."""

import fnmatch
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lit_gpt.cli import InputError

_TEXTS = ("README.md", "LICENSE*")
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", *_TEXTS)
_LOG_FILES = ("*.parquet", "*.json", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", *_TEXTS)
_INDEX = "model.safetensors.index.json"


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
        if name in files and "auto_map" in _read_json(folder / name):
            raise InputError(
                f"{folder / name} names code of its own (auto_map), which no model of ours needs"
            )
    _check_weights(folder, {name for name in files if name.endswith(".safetensors")})
    return files


def log_files(folder: Path) -> dict[str, int]:
    """Size in bytes by path of the files of a datapoint log.

    Raises:
        InputError: there are none, or a file is of another kind.
    """
    files = _files(folder, _LOG_FILES)
    if not files:
        raise InputError(f"{folder} is empty")
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
    return files


def _check_weights(folder: Path, found: set[str]) -> None:
    index = _read_json(folder / _INDEX).get("weight_map", {}) if (folder / _INDEX).is_file() else None
    named = {"model.safetensors"} if index is None else set(index.values())
    if missing := named - found:
        raise InputError(f"{folder / min(missing)} is missing; convert the checkpoint again")
    if others := found - named:
        raise InputError(f"{folder / min(others)} is not part of the model; move it away")
    for name in sorted(named):
        try:
            with safe_open(folder / name, framework="numpy") as file:
                tensors = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / name} is damaged ({error}); convert the checkpoint again") from error
        if index is not None and tensors != {tensor for tensor, place in index.items() if place == name}:
            raise InputError(
                f"{folder / name} does not hold what {_INDEX} says; convert the checkpoint again"
            )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); convert the checkpoint again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (no JSON object); convert the checkpoint again")
    return content
