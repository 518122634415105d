"""Shards of Megatron-LM's tools become a store that keeps their documents and says how they begin and end."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from data_prep.adopt_megatron import Options, main
from lit_gpt.cli import InputError
from lit_gpt.store.shard_files import ROW_GROUP
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer


def write_shard(base: Path, documents: list[list[list[int]]], dtype: str = "<u2") -> None:
    """Documents of sequences of tokens, as the format's description has them."""
    sequences = [sequence for document in documents for sequence in document]
    tokens = np.array([token for sequence in sequences for token in sequence], dtype)
    lengths = [len(sequence) for sequence in sequences]
    starts = (np.cumsum([0, *lengths])[:-1] * tokens.itemsize).tolist()
    bounds = np.cumsum([0, *map(len, documents)]).tolist()
    header = struct.pack(
        "<9sQBQQ", b"MMIDIDX\0\0", 1, {2: 8, 4: 4}[tokens.itemsize], len(lengths), len(bounds)
    )
    arrays = struct.pack(f"<{len(lengths)}i{len(starts)}q{len(bounds)}q", *lengths, *starts, *bounds)
    base.with_suffix(".idx").write_bytes(header + arrays)
    base.with_suffix(".bin").write_bytes(tokens.tobytes())


@pytest.fixture
def options(tmp_path: Path, tokenizer_dir: Path) -> Options:
    tokenizer = Tokenizer.load(tokenizer_dir)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    write_shard(tmp_path / "a_text_document", [[[bos, 9, eos]], [[8], [7, eos]], [], [[5]]])
    write_shard(tmp_path / "b_text_document", [[[n % 500, eos]] for n in range(ROW_GROUP + 3)])
    return Options([str(tmp_path / "*.idx")], tokenizer_dir, tmp_path / "store")


def test_the_help_names_ids_that_are_found(options: Options):
    [named] = re.findall(r"the id `(.*?)`", Options.__doc__ or "")
    shard, document = named.split(":")
    write_shard(options.output.parent / "c_text_document", [[[1, 2]]] * 8)
    again = Options([str(options.output.parent / "c*.idx")], options.tokenizer, options.output.parent / "c")
    main(again)
    assert TokenStore.open(again.output).find(named) == [(int(shard.removeprefix("shard-")), int(document))]


def test_documents_stay_as_they_are(options: Options, capsys: pytest.CaptureFixture[str]):
    main(options)
    store = TokenStore.open(options.output)
    store.verify()
    eos = store.eos_id
    assert [store.document_tokens(0, d).tolist() for d in range(4)] == [[0, 9, eos], [8, 7, eos], [], [5]]
    assert store.lengths(1).tolist() == [2] * (ROW_GROUP + 3)
    last = ROW_GROUP + 2
    assert store.find(f"shard-00001:{last}") == [(1, last)]
    [info] = store.document_info(1, np.array([last]))
    assert (info.source, info.source_line) == (options.input[0].replace("*", "b_text_document"), last)
    assert [(shard.n_with_bos, shard.n_with_eos) for shard in store.manifest.shards] == [
        (1, 2),
        (sum(n % 500 == store.bos_id for n in range(ROW_GROUP + 3)), ROW_GROUP + 3),
    ]
    assert f"{ROW_GROUP + 5:,} of {ROW_GROUP + 7:,} documents end with EOS" in capsys.readouterr().err


def test_int32_shards_keep_their_type(options: Options, tmp_path: Path):
    write_shard(tmp_path / "wide", [[[1, 2, 3]]], "<i4")
    main(Options([str(tmp_path / "wide.idx")], options.tokenizer, tmp_path / "wide_store"))
    store = TokenStore.open(tmp_path / "wide_store")
    assert store.manifest.dtype == "int32"
    assert store.document_tokens(0, 0).tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="uint16 and int32; adopt them as two stores"):
        main(options)


def test_what_does_not_fit_is_one_line(options: Options, tmp_path: Path):
    index, data = tmp_path / "a_text_document.idx", tmp_path / "a_text_document.bin"
    tokens = data.read_bytes()
    cases = [
        (lambda: data.unlink(), "with its .bin beside it"),
        (lambda: data.write_bytes(tokens[:-2]), "points outside its data"),
        (lambda: data.write_bytes(b"\xff\xff" + tokens[2:]), "holds token 65535, not one of the 512"),
        (lambda: index.write_bytes(index.read_bytes()[:-8]), "truncated"),
        (lambda: write_shard(tmp_path / "a_text_document", [[], [[]]]), "no document with a token"),
        (lambda: index.write_text("x"), "not an index"),
    ]
    for damage, says in cases:
        damage()
        with pytest.raises(InputError, match=says):
            main(options)
        assert not options.output.exists()
    with pytest.raises(InputError, match=r"is none of \.idx"):
        main(Options([str(tmp_path / "b_text_document.bin")], options.tokenizer, options.output))
    options.output.mkdir()
    (options.output / "x").touch()
    data.write_bytes(tokens)
    with pytest.raises(InputError, match="not empty"):
        main(Options([str(tmp_path / "b_text_document.idx")], options.tokenizer, options.output))


@pytest.mark.slow
def test_the_shards_of_megatrons_own_builder(options: Options, tmp_path: Path, train_store_dir: Path):
    from megatron.core.datasets import indexed_dataset  # takes seconds

    ours = TokenStore.open(train_store_dir)
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), np.uint16)
    for document in range(20):
        tokens = ours.document_tokens(0, document)[1:]  # as with --append-eod: no BOS
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    main(Options([str(tmp_path / "theirs.idx")], options.tokenizer, tmp_path / "theirs"))
    store = TokenStore.open(tmp_path / "theirs")
    assert store.document_ends == (20, 0, 20)
    for document in range(20):
        np.testing.assert_array_equal(
            store.document_tokens(0, document), ours.document_tokens(0, document)[1:]
        )


def test_a_store_of_ours_can_be_adopted(options: Options, tmp_path: Path, train_store_dir: Path):
    ours = TokenStore.open(train_store_dir)
    shutil.copytree(train_store_dir, tmp_path / "copy")
    main(Options([str(tmp_path / "copy" / "*.idx")], options.tokenizer, tmp_path / "again"))
    store = TokenStore.open(tmp_path / "again")
    assert (store.n_documents, store.n_tokens, store.n_shards) == (
        ours.n_documents,
        ours.n_tokens,
        ours.n_shards,
    )
    assert set(store.document_ends) == {store.n_documents}
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["provenance"]["command"] == "adopt_megatron"
