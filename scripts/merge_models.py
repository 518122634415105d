#!/usr/bin/env python
"""Several Hugging Face folders of one shape -> one: a chat vector, SLERP of two, a weighted mean."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.files import new_folder
from lit_gpt.hashed_files import sha256_of
from lit_gpt.hf.exporter import GIGABYTE, write_json, write_weights
from lit_gpt.hf.merging import (
    RowsOf,
    SourceModel,
    chat_vector,
    check_dtypes,
    check_ids,
    check_shapes,
    finite,
    slerp,
    weighted_mean,
)
from lit_gpt.hf.model_card import card_head
from lit_gpt.option_types import Fraction, NonNegativeFloat, PositiveFloat, Range
from lit_gpt.store.tokenizer import files_in

FORMULAS = {
    "chat_vector": "cpt + w (chat - base); rows of embedding and head from shared_ids on are those of cpt",
    "slerp": "(sin((1 - t) a) m1 + sin(t a) m2) / sin(a), a the angle between the flattened tensors; "
    "(1 - t) m1 + t m2 where |cos(a)| > 0.9995",
    "linear": "(w1 m1 + ... + wn mn) / (w1 + ... + wn)",
}
_OPTIONS_OF = {
    "chat_vector": ("cpt", "chat", "base", "w"),
    "slerp": ("models", "t"),
    "linear": ("models", "weights"),
}


@dataclass
class MergeOptions:
    """Merge Llama or Mistral models of one shape: Hugging Face folders (safetensors) in, one out.

    chat_vector  cpt + w (chat - base): what tuning for chat added to a base, added to a model that continued
                 from the same base. Tokens that only cpt has keep its rows.
    slerp        from model 1 (t = 0) along the arc to model 2 (t = 1)
    linear       the weighted mean of two or more models

    Computed in float32, stored in the dtype of cpt or model 1, whose tokenizer and config.json are copied.
    Refused unless an id is the same token in all. Some rows are in memory at a time; the folder appears only
    when complete. merge.json in it says what was merged.
    """

    SHOWN_DEFAULTS: ClassVar = {"w": "default: 1", "t": "default: 0.5", "weights": "default: all the same"}

    method: Literal["chat_vector", "slerp", "linear"]
    """How."""
    output: Path
    """Folder to write; must not exist."""
    cpt: Path | None = None
    """For chat_vector: the model that was trained on (continued pretraining)."""
    chat: Path | None = None
    """For chat_vector: the chat model that others made from the base."""
    base: Path | None = None
    """For chat_vector: the base of both."""
    w: NonNegativeFloat | None = None
    """For chat_vector: how much of the difference is added."""
    models: list[Path] | None = None
    """For slerp two folders, for linear two or more."""
    t: Fraction | None = None
    """For slerp: 0 is the first model, 1 the second."""
    weights: list[Annotated[float, Range(at_least=0, at_most=1e6)]] | None = None
    """For linear: one for each model, in any proportion."""
    max_shard_gb: PositiveFloat = 5.0
    """Largest weights file, in 10^9 bytes."""


def main(options: MergeOptions) -> None:
    """Merge, and say what the folder is."""
    check(options)
    sources, rows_of, parameters = open_sources(options)
    first = next(iter(sources.values()))
    with new_folder(options.output) as folder:
        write_weights(folder, first.specs(), finite(rows_of), int(options.max_shard_gb * GIGABYTE))
        record = {
            "format_version": 1,
            "method": options.method,
            "formula": FORMULAS[options.method],
            **parameters,
            "sources": {
                name: describe(source) for name, source in progress(sources.items(), description="hashes")
            },
        }
        write_json(folder / "merge.json", record)
        (folder / "README.md").write_text(model_card(options.output.name, record), encoding="utf-8")
        # config.json last: without it transformers opens nothing.
        for path in [*files_in(first.folder), first.folder / "config.json"]:
            shutil.copyfile(path, folder / path.name)
    print(f"{options.output}: {options.method} of {', '.join(str(one.folder) for one in sources.values())}")


def check(options: MergeOptions) -> None:
    """Raises InputError: options that the method lacks, does not take, or that do not fit each other."""
    taken = _OPTIONS_OF[options.method]
    mistakes = [
        f"--{name} is not an option of {options.method}"
        for name in sorted({name for names in _OPTIONS_OF.values() for name in names} - set(taken))
        if getattr(options, name) is not None
    ]
    mistakes += [
        f"{options.method} needs --{name}"
        for name in taken
        if name not in ("w", "t", "weights") and getattr(options, name) is None
    ]
    count, weights = len(options.models or ()), options.weights
    if options.models is not None and (count < 2 or (options.method == "slerp" and count > 2)):
        wanted = "two" if options.method == "slerp" else "two or more"
        mistakes.append(f"--models: {options.method} takes {wanted}, not {count}")
    if weights is not None and (len(weights) != count or not sum(weights)):
        mistakes.append(f"--weights: give one for each of {count} models, not all of them 0")
    if mistakes:
        raise InputError("; ".join(mistakes))


def open_sources(options: MergeOptions) -> tuple[dict[str, SourceModel], RowsOf, dict[str, Any]]:
    """The models by their names in the formula, the one whose config is kept first; and the numbers in it.

    Raises:
        InputError: a folder is damaged, or they do not belong together.
    """
    if options.method == "chat_vector":
        given = (options.cpt, options.chat, options.base)
        cpt, chat, base = (SourceModel(folder) for folder in given if folder)
        check_shapes([cpt, base], may_differ=("vocab_size", "rope_base", "rope_scaling"))
        check_shapes([base, chat], may_differ=("vocab_size",))
        check_dtypes([base, chat])
        shared_ids = check_ids(base, [cpt, chat])
        w = 1.0 if options.w is None else options.w
        rows_of = chat_vector(cpt, chat, base, w, shared_ids)
        return {"cpt": cpt, "chat": chat, "base": base}, rows_of, {"w": w, "shared_ids": shared_ids}
    models = [SourceModel(folder) for folder in options.models or ()]
    check_shapes(models)
    check_dtypes(models)
    check_ids(models[0], models[1:])
    sources = {f"m{number}": model for number, model in enumerate(models, start=1)}
    if options.method == "slerp":
        t = 0.5 if options.t is None else options.t
        return sources, slerp(models[0], models[1], t), {"t": t}
    weights = options.weights or [1.0] * len(models)
    return sources, weighted_mean(models, weights), {"weights": weights}


def describe(source: SourceModel) -> dict[str, Any]:
    """The folder as it was given, and SHA-256 of what was read in it, as the hub shows it of weights."""
    names = ["config.json", "tokenizer.json", *source.weight_files]
    return {"folder": str(source.folder), "sha256": {name: sha256_of(source.folder / name) for name in names}}


def model_card(name: str, record: Mapping[str, Any]) -> str:
    """Markdown for the Hugging Face hub."""
    numbers = [f"{key} = {record[key]}" for key in ("w", "shared_ids", "t", "weights") if key in record]
    sources = [f"- {key}: {Path(value['folder']).name}" for key, value in record["sources"].items()]
    lines = [
        *card_head(name),
        f"A merge ({record['method']}): {record['formula']}; {', '.join(numbers)}. Hashes are in merge.json.",
        "",
        *sources,
        "",
        "## Licence",
        "",
        "To be named by those who publish the model, as those of the merged models allow.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(MergeOptions, main)
