"""The jobs of tokenize_corpus.py (read, encode in processes, write, resume) and of pack.py."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from data_prep.processes import claimed, n_cores, ordered_map
from data_prep.reading.batches import Batch, read_batches
from data_prep.reading.documents import ID_FIELDS, TEXT_FIELDS
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import losses_in_short
from data_prep.tokenizing.work import SNAPSHOT, EncodedBatch, State, encode_batch, is_finished
from lit_gpt.cli import InputError, progress
from lit_gpt.files import read_json, write_atomically
from lit_gpt.option_types import NonNegativeFloat, NonNegativeInt, Parsed, PositiveInt, Share
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.store_entry import SHARE_FORM, DocumentShare
from lit_gpt.store.manifest import ChatFormat
from lit_gpt.store.masking import is_target
from lit_gpt.store.store_writer import MAX_SHARD_TOKENS, TokenStoreWriter
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer

SET_ASIDE = "set_aside.jsonl"


@dataclass
class JobOptions:
    """What every job that writes token stores is told."""

    GROUP_TITLE: ClassVar = "Input and output"

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."""
    tokenizer: Path
    """Folder of the tokenizer."""
    output: Path
    """Folder of the store."""
    val_fraction: Share = 0.0
    """Share of the documents that goes to --val_output, chosen by a hash of the id."""
    val_output: Path | None = None
    """Folder of the validation store."""
    workers: PositiveInt | None = None
    """Processes (default: one per core)."""
    id_fields: list[str] = field(default_factory=lambda: list(ID_FIELDS))
    """Field that holds the id: the first of these that a document has; without one the id is file:line."""
    max_shard_tokens: PositiveInt = MAX_SHARD_TOKENS
    """Most tokens in a shard; a longer document gets a shard of its own."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop if there are more unusable lines; the lost rest of a broken file is counted by an estimate."""
    snapshot_seconds: NonNegativeFloat = 30.0
    """Seconds between snapshots: the work that a kill may cost."""


@dataclass
class Options(JobOptions):
    """Tokenize documents into a token store. Killed and started again, it continues."""

    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""
    min_tokens: NonNegativeInt = 0
    """Drop shorter documents, for a store to train long rows on; BOS and EOS count."""
    made_from: Path | None = None
    """JSON file that says how the input was made; the store's manifest quotes it."""


@dataclass(frozen=True)
class Job:
    """What tells one command's job from another's."""

    command: str
    tokenizer: Tokenizer
    files: list[Path]
    settings: dict[str, Any]
    """All that the store's bytes depend on, except the input."""
    encode: Callable[[Batch], EncodedBatch]
    """Pickled for each process."""
    chat: ChatFormat | None = None
    """Of conversations, whose tokens are masked."""


def tokenize(options: Options) -> None:
    """Run the job, or the rest of it.

    Raises:
        InputError: options contradict each other, the input is unusable, or the folder has other work in it.
    """
    check(options)
    tokenizer = Tokenizer.load(options.tokenizer)
    files = find_files(options.input)
    named = options.id_fields != list(ID_FIELDS)
    look_into(files, options.text_fields, options.id_fields, named, max_bad_lines=options.max_bad_lines)
    settings = {
        "tokenizer": tokenizer.fingerprint,
        "val_fraction": options.val_fraction,
        "text_fields": options.text_fields,
        "id_fields": options.id_fields,
        "max_shard_tokens": options.max_shard_tokens,
        "min_tokens": options.min_tokens or None,  # absent from stores of earlier revisions
    }
    if options.made_from is not None:
        settings["made_from"] = read_json(options.made_from, "leave --made_from out")
    encode = partial(
        encode_batch,
        tokenizer=options.tokenizer,
        text_fields=options.text_fields,
        id_fields=options.id_fields,
        val_fraction=options.val_fraction,
        min_tokens=options.min_tokens,
    )
    run(Job("tokenize_corpus", tokenizer, files, settings, encode), options)


def run(job: Job, options: JobOptions) -> None:
    """Write the stores of a job, or the rest of them, and sum up what they hold.

    Raises:
        InputError: the input is unusable, or the folder has other work in it.
    """
    folders = [folder for folder in (options.output, options.val_output) if folder is not None]
    with nullcontext() if is_finished(options.output) else claimed(options.output):
        inputs = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in job.files]
        state = State(job.settings, inputs, str(options.val_output)).or_found_in(options.output)
        if state is None:
            print(f"{options.output} is finished already, by the same settings")
        else:
            state.set_aside.limit = options.max_bad_lines
            writers = [
                TokenStoreWriter(
                    folder, job.tokenizer, options.max_shard_tokens, snapshot, masked=job.chat is not None
                )
                for folder, snapshot in zip(folders, state.writers, strict=False)
            ]
            _encode(state, writers, job, options)
            _finish(state, writers, job, options.output)
    for folder in folders:
        _summarize(folder)


def check(options: JobOptions) -> None:
    """
    Raises:
        InputError: options contradict each other.
    """
    mistakes = []
    if (options.val_fraction > 0) != (options.val_output is not None):
        mistakes.append("--val_fraction and --val_output go together")
    if options.val_output is not None and options.val_output.absolute() == options.output.absolute():
        mistakes.append("--val_output is --output; validation needs a folder of its own")
    if mistakes:
        raise InputError("; ".join(mistakes))


def _encode(state: State, writers: list[TokenStoreWriter], job: Job, options: JobOptions) -> None:
    state.save(options.output, writers)
    saved = time.monotonic()
    encoded_batches = ordered_map(job.encode, _batches(state), options.workers or n_cores())
    with progress(description="tokenize", total=state.total_bytes, unit="B", initial=state.bytes_done) as bar:
        for encoded in encoded_batches:
            source = encoded.batch.source
            for writer, share in zip(writers, encoded.shares, strict=False):
                writer.add_many(share.ids, source, share.source_lines, share.lengths, share.tokens)
            state.take(encoded)
            bar.update(state.bytes_done - bar.n)
            if time.monotonic() - saved >= options.snapshot_seconds:
                state.save(options.output, writers)
                saved = time.monotonic()


def _batches(state: State) -> Iterator[Batch]:
    first, line = state.file, state.line
    for number in range(first, len(state.inputs)):
        yield from read_batches(Path(state.inputs[number][0]), line if number == first else 1)


def _finish(state: State, writers: list[TokenStoreWriter], job: Job, output: Path) -> None:
    """Write the manifests. After a kill in here, the next run finds all shards closed and repeats this."""
    places = state.set_aside.places
    for empty in (writer.folder for writer in writers if not writer.n_documents):
        (output / SNAPSHOT).unlink()  # so that other settings can begin anew
        for writer in writers:
            writer.discard()
        unusable = ""
        if places:
            unusable = f" ({len(places):,} unusable lines, the first {places[0][0]}: {places[0][1]})"
        raise InputError(
            f"no document for {empty} out of {len(state.inputs)} files{unusable}; run again with other "
            "input, more of it, or another --val_fraction"
        )
    if places:
        named = [json.dumps({"place": place, "reason": reason}) for place, reason in places]
        write_atomically(output / SET_ASIDE, "\n".join(named) + "\n")
    for writer in writers:
        writer.close_shard()
    state.save(output, writers)
    for part in reversed(range(len(writers))):  # training last: its manifest means that all is done
        writers[part].finish(state.provenance(job.command, part, ratios=not job.chat), job.chat)
    (output / SNAPSHOT).unlink()


def _summarize(folder: Path) -> None:
    store = TokenStore.open(folder)
    done = store.manifest.provenance
    counts = done["counts"]
    if store.masked:
        targets = sum(int(is_target(store.tokens(shard)).sum()) for shard in range(store.n_shards))
        measured = f"{targets:,} of them targets ({targets / counts['tokens']:.1%})"
    else:
        measured = (
            f"{counts['tokens_per_word']:.3f} tokens per word, "
            f"{counts['bytes_per_token']:.3f} bytes per token"
        )
    print(f"{folder}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {measured}")
    if repeated := store.count_repeated_ids():
        print(
            f"repeated ids: {repeated:,} documents share their id with another of their shard; a look-up "
            "finds all of them, and validation takes all or none (--id_fields names another field)"
        )
    if done["part"] == "training":
        reasons = "".join(f", {count:,} {reason}" for reason, count in done["set_aside"].items())
        if short := done.get("short_documents"):
            reasons = f", {short:,} of fewer than {done['settings']['min_tokens']:,} tokens{reasons}"
        print(f"skipped: {done['empty_documents']:,} empty documents{reasons}")
        for line in losses_in_short(done.get("losses", [])):
            print(line)
        if reasons:
            print(f"each is named in {folder / SET_ASIDE}")


@dataclass
class PackOptions:
    """Pack a token store's documents into rows, and check the packing against the store."""

    store: Path
    """Folder of the token store."""
    block_size: PositiveInt = 2048
    """Targets per row; the block_size of the training."""
    strategy: Literal["best_fit", "concat", "one_per_row"] = "best_fit"
    """`best_fit` cuts only documents longer than a row, `concat` cuts wherever a row ends, `one_per_row`
    never joins documents."""
    share: Annotated[str, Parsed(DocumentShare.parse, SHARE_FORM)] | None = None
    """Pack these documents only, LO-HI in percent, for a training on STORE@LO-HI."""
    packing_dir: Path | None = None
    """Where to write the packing (default: into the store)."""


def pack(options: PackOptions) -> None:
    """Make the packing unless it is there, verify it, and print its figures."""
    store = TokenStore.open(options.store)
    share = DocumentShare.parse(options.share) if options.share else None
    packed = PackedStore.open(store, options.block_size, options.strategy, options.packing_dir, share)
    packed.verify()
    rows = int(packed.rows_per_shard.sum())
    segments = sum(shard.pieces for shard in packed.shards)
    cut = sum(shard.cut_documents for shard in packed.shards)
    print(f"packing      {packed.folder}")
    print(f"rows         {rows:,} of {options.block_size:,} targets")
    print(f"waste        {packed.waste:.4%} of slots")
    print(f"segments     {segments:,}, {segments / max(1, rows):.2f} a row")
    print(f"cut          {cut:,} of {store.n_documents:,} documents")
    print(f"checks       each of {packed.n_targets:,} targets is in one row; {rows:,} row checksums agree")
    print(f"fingerprint  {packed.fingerprint}")
