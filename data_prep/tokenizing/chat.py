"""The job of tokenize_chat.py: conversations to a masked store, whose targets the assistant writes."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from data_prep.reading.batches import Batch, Rejected
from data_prep.reading.conversations import CONVERSATION, FIELDS
from data_prep.reading.documents import ID_FIELDS, Document, parse_batch
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import LEFT_OUT
from data_prep.tokenizing.chat_template import SHIPPED, ChatTemplate
from data_prep.tokenizing.job import Job, JobOptions, check, run
from data_prep.tokenizing.work import Encoded, EncodedBatch, split
from lit_gpt.errors import InputError
from lit_gpt.option_types import PositiveInt
from lit_gpt.store import masking
from lit_gpt.store.manifest import ChatFormat
from lit_gpt.store.tokenizer import Tokenizer


@dataclass
class ChatOptions(JobOptions):
    """Tokenize conversations into a masked token store, whose targets are what the assistant writes.

    A conversation is `{"id": ..., "messages": [{"role": "system" | "user" | "assistant", "content": ...}]}`.
    Killed and started again, it continues.
    """

    template: Path = SHIPPED
    """Chat template in Jinja with `generation` markers around what the assistant writes."""
    SHOWN_DEFAULTS: ClassVar = {"template": f"default: ChatML, data_prep/templates/{SHIPPED.name}"}

    max_tokens: PositiveInt = 2048
    """Leave longer conversations out, for none is ever cut; at most the training's block_size + 1."""


def tokenize_chat(options: ChatOptions) -> None:
    """Run the job, or the rest of it.

    Raises:
        InputError: options contradict each other, template, tokenizer or input is unusable, or the folder has
            other work in it.
    """
    check(options)
    tokenizer = Tokenizer.load(options.tokenizer)
    template = _read(options.template)
    chat = ChatTemplate(tokenizer, template, f"--template {options.template}")
    end_of_turn = chat.check()
    if options.max_tokens < (least := chat.shortest()):
        raise InputError(f"--max_tokens {options.max_tokens}: the shortest conversations have {least}")
    files = find_files(options.input)
    named = options.id_fields != list(ID_FIELDS)
    look_into(files, FIELDS, options.id_fields, named, CONVERSATION, options.max_bad_lines)
    settings = {
        "tokenizer": tokenizer.fingerprint,
        "val_fraction": options.val_fraction,
        "id_fields": options.id_fields,
        "max_shard_tokens": options.max_shard_tokens,
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "max_tokens": options.max_tokens,
    }
    encode = partial(
        encode_conversations,
        tokenizer=options.tokenizer,
        chat=ChatFormat(template, end_of_turn),
        id_fields=options.id_fields,
        val_fraction=options.val_fraction,
        max_tokens=options.max_tokens,
    )
    run(Job("tokenize_chat", tokenizer, files, settings, encode, ChatFormat(template, end_of_turn)), options)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--template {path} cannot be read: {error}; give a chat template in Jinja"
        ) from None


def encode_conversations(
    batch: Batch,
    tokenizer: Path,
    chat: ChatFormat,
    id_fields: Sequence[str],
    val_fraction: float,
    max_tokens: int,
) -> EncodedBatch:
    """Parse a batch, tokenize its conversations, and split them into training and validation.

    Args:
        tokenizer: folder of the tokenizer; each process loads it once.
        chat: the template, and the token that ends each of the assistant's turns.
        id_fields: as in `read_documents`.
        val_fraction: share of the conversations for validation.
        max_tokens: longer conversations are left out.

    Raises:
        InputError: the file's objects have no `messages`.
    """
    documents, rejected = parse_batch(batch, FIELDS, id_fields, CONVERSATION)
    template = _load(tokenizer, chat.template)
    encoded = []
    for document in documents:
        try:
            encoded.append(_encode(document, template, chat.end_of_turn, max_tokens))
        except ValueError as error:
            rejected.append(Rejected(document.source_line, str(error)))
    shares = split(encoded, val_fraction, CONVERSATION)
    return EncodedBatch(batch._replace(data=b""), shares, rejected, n_empty=0, n_short=0)


@functools.cache
def _load(folder: Path, template: str) -> ChatTemplate:
    return ChatTemplate(Tokenizer.load(folder, cache_words=False), template)


def _encode(document: Document, template: ChatTemplate, end_of_turn: int, max_tokens: int) -> Encoded:
    """
    Raises:
        ValueError: the conversation is left out or rejected, and why.
    """
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in document.text]
    if any(template.has_control_tokens(turn["content"]) for turn in turns):
        raise ValueError(f"{LEFT_OUT}: content with the string of a special token")
    ids, targets = template.encode(turns)
    if len(ids) > max_tokens:
        raise ValueError(f"{LEFT_OUT}: more than {max_tokens:,} tokens")
    if not template.turns_end_with(end_of_turn, ids, targets, turns):
        raise ValueError("the template does not mark each turn of the assistant to its end")
    return Encoded(document, masking.mask(ids, targets))
