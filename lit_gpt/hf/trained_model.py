"""A checkpoint as a model: its weights, its shape, and the tokenizer that it was trained with."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.checkpoint.folder import read_state, verify
from lit_gpt.checkpoint.tensor_files import TensorReader
from lit_gpt.cli import InputError
from lit_gpt.files import read_json
from lit_gpt.model.config import ModelConfig
from lit_gpt.store.manifest import DocumentEnds, Manifest
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import REQUIRED_FILES, Tokenizer, same_ids


class TrainedModel(NamedTuple):
    """A verified checkpoint, ready to be read."""

    reader: TensorReader
    config: ModelConfig
    state: dict[str, Any]
    tokenizer: Tokenizer
    tokenizer_files: list[Path]
    """Of the tokenizer that came with the weights; none where it is another one."""
    bos: bool | None
    """Whether BOS belongs before a text, as before the documents of training; None: not known."""
    end_ids: list[int]
    """Tokens at which generation stops: EOS, and those that end a turn of a conversation."""
    chat_template: str | None
    """Of the conversations that it was trained on; None: the tokenizer's files have it, if there is one."""


def open_checkpoint(checkpoint: Path, tokenizer_path: Path | None) -> TrainedModel:
    """Verify what a converter needs of it.

    Args:
        checkpoint: the folder.
        tokenizer_path: None for the one that the checkpoint carries, or the copy in the first token store
            that it was trained on.

    Raises:
        InputError: damaged, no trainer's checkpoint, or no tokenizer, or one with more ids than the model.
    """
    manifest = verify(checkpoint, parts=("state", "tokenizer"))
    state = read_state(checkpoint)
    config = ModelConfig.load(checkpoint)
    carried = [] if tokenizer_path else _carried_tokenizer(checkpoint, manifest.of_parts(["tokenizer"]))
    folder = tokenizer_path or (carried[0].parent if carried else _store_tokenizer(checkpoint, state))
    tokenizer = Tokenizer.load(folder, cache_words=False)
    if tokenizer.vocab_size > config.vocab_rows:
        raise InputError(
            f"{tokenizer.folder} has {tokenizer.vocab_size} tokens, the model's vocabulary only "
            f"{config.vocab_rows}: give --tokenizer_path the tokenizer that the data was made with"
        )
    if tokenizer.fingerprint != state.get("tokenizer", tokenizer.fingerprint):
        raise InputError(
            f"{tokenizer.folder} is not the tokenizer that the training data was made with: give "
            "--tokenizer_path that one"
        )
    verify(checkpoint, parts=("model",))  # gigabytes: after everything that is quick to find wrong
    reader = TensorReader(checkpoint, manifest.of_parts(["model"]))
    ends = _end_ids(tokenizer, carried or tokenizer.files(), state, config.vocab_rows)
    template = state["chat"]["template"] if "chat" in state else None
    return TrainedModel(reader, config, state, tokenizer, carried, _begins_with_bos(state), ends, template)


def check_tokenizer(folder: Path, store: TokenStore) -> None:
    """Compare the tokenizer of a checkpoint's weights with that of a token store, where both are known.

    A checkpoint of the trainer has the fingerprint; one converted from Hugging Face may have the files.

    Raises:
        InputError: they differ, so that every id would mean another token; names both. Or the checkpoint is
            damaged.
    """
    fingerprint, carried = read_state(folder).get("tokenizer"), folder / "tokenizer"
    if fingerprint == store.manifest.tokenizer:
        return
    where = f"fingerprint {fingerprint[:12]}" if fingerprint else ""
    if fingerprint is None:
        if not all((carried / name).is_file() for name in REQUIRED_FILES):
            return
        places = (carried, store.path / "tokenizer")
        if same_ids(*(Tokenizer.load(place, cache_words=False) for place in places)):
            return
        where = str(carried)
    raise InputError(
        f"the weights in {folder} were trained with another tokenizer ({where}) than the data: "
        f"{store.path / 'tokenizer'} ({store.manifest.tokenizer[:12]}); tokenize the data with theirs"
    )


def _stores(state: dict[str, Any]) -> list[Path]:
    """Where the token stores were."""
    data = state.get("data", {}).get("data", {})
    entries = data.get("options", {}).get("train_data_dir", [])
    shares = [f"@{store['share']}" if "share" in store else "" for store in data.get("stores", [])]
    paths = (entry.rpartition(":")[0] if data.get("weights") else entry for entry in entries)
    return [Path(path.removesuffix(share)) for path, share in zip(paths, shares, strict=True)]


def _carried_tokenizer(checkpoint: Path, names: Collection[str]) -> list[Path]:
    """Its files of these names, if those that `Tokenizer` reads are among them."""
    complete = all(f"tokenizer/{name}" in names for name in REQUIRED_FILES)
    return [checkpoint / name for name in names] if complete else []


def _store_tokenizer(checkpoint: Path, state: dict[str, Any]) -> Path:
    if not (stores := _stores(state)):
        raise InputError(
            f"{checkpoint} carries no tokenizer and was not trained on a token store: give --tokenizer_path "
            "the model's"
        )
    if not (folder := stores[0] / "tokenizer").is_dir():
        raise InputError(f"the token store is not where it was: give --tokenizer_path what {folder} was")
    return folder


def _end_ids(tokenizer: Tokenizer, files: list[Path], state: dict[str, Any], vocab_rows: int) -> list[int]:
    """EOS first, then those of the tokenizer's generation_config.json, then the run's end of turn."""
    ids = [tokenizer.eos_id]
    for path in files:
        if path.name == "generation_config.json":
            found = read_json(path, "copy it again").get("eos_token_id") or []
            ids += found if isinstance(found, list) else [found]
            if not all(isinstance(token, int) and 0 <= token < vocab_rows for token in ids):
                raise InputError(
                    f"{path}: eos_token_id {found!r} is no id of the {vocab_rows} that the model has"
                )
    if "chat" in state:
        ids.append(state["chat"]["end_of_turn"])
    return list(dict.fromkeys(ids))


def _begins_with_bos(state: dict[str, Any]) -> bool | None:
    if "documents" in state:
        return DocumentEnds(**state["documents"]).begin_with_bos
    try:  # checkpoints of earlier revisions do not say; their stores do
        ends = DocumentEnds.of(map(Manifest.read, _stores(state)))
    except InputError:
        return None
    return ends.begin_with_bos if ends.documents else None
