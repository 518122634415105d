"""A store adopted without BOS: it is said, and clients of its models do without BOS too."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer

from lit_gpt.checkpoint.folder import STATE, list_checkpoints
from lit_gpt.hf.trained_model import open_checkpoint
from lit_gpt.store.manifest import DocumentEnds
from lit_gpt.store.shard_files import write_index
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer, adds_bos
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from scripts.evaluation.harness import load_model
from scripts.generate import GenerateOptions, _load_checkpoint, _load_folder, _prompt_ids
from tests.pretrain.running import ROOT, environment, train
from tests.scripts.checkpoints import write_checkpoint

TEXT = "Der Wald"


@pytest.fixture(scope="module")
def adopted(tmp_path_factory, train_store_dir, tokenizer_dir) -> tuple[Path, str]:
    """(store without BOS and EOS, what the command said)"""
    folder, ours = tmp_path_factory.mktemp("megatron"), TokenStore.open(train_store_dir)
    lengths = ours.lengths(0) - 2
    tokens = [ours.document_tokens(0, document)[1:-1].tobytes() for document in range(len(lengths))]
    (folder / "text.bin").write_bytes(b"".join(tokens))
    write_index(folder / "text.idx", ours.dtype, lengths)
    command = [sys.executable, str(ROOT / "data_prep/adopt_megatron.py"), "--input", str(folder / "text.idx")]
    command += ["--tokenizer", str(tokenizer_dir), "--output", str(folder / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    return folder / "store", done.stderr


@pytest.fixture(scope="module")
def run(adopted, tmp_path_factory) -> tuple[Path, str]:
    """(run trained on it, what the command said)"""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = {"max_steps": 2, "warmup_steps": 1, "save_step_interval": 2, "eval_step_interval": 0}
    done = train(folder, adopted[0], **flags)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_said_with_the_remedy(adopted, run):
    for said in (adopted[1], run[1]):
        assert re.search(r"store: 0 of \d+ documents begin with BOS", said)
        assert "exported with its models put no BOS before a text" in said
        assert re.search(r"store: 0 of \d+ documents end with EOS", said)
        assert "preprocess_data.py --append-eod" in said
        assert "data_prep/tokenize_corpus.py" in said


@pytest.mark.slow
def test_no_client_puts_bos_before_a_text(run, tokenizer_dir, tmp_path):
    [(_, checkpoint)] = list_checkpoints(run[0])
    convert(ConvertOptions(checkpoint, tmp_path / "hf", check=True))
    ids = Tokenizer.load(tokenizer_dir).encode([TEXT])[0][1:-1].tolist()
    config = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, False)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(TEXT) == ids
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json")).encode(TEXT).ids == ids
    assert "Documents began without a BOS token" in (tmp_path / "hf/README.md").read_text()

    for model, tokenizer in (
        _load_folder(tmp_path / "hf"),
        _load_checkpoint(GenerateOptions(checkpoint, TEXT)),
    ):
        assert model is not None
        assert _prompt_ids(tokenizer, TEXT) == ids

    harness = load_model(tmp_path / "hf", dtype="auto", device="cpu", batch_size=1)
    assert harness.tok_encode(TEXT) == ids
    assert harness.prefix_token_id == harness.tokenizer.eos_token_id


@pytest.mark.slow
def test_checkpoints_of_earlier_revisions_ask_their_store(adopted, run, tmp_path):
    [(_, checkpoint)] = list_checkpoints(run[0])
    state = json.loads((checkpoint / STATE).read_text())
    assert not DocumentEnds(**state.pop("documents")).begin_with_bos
    folder = write_checkpoint(tmp_path / "iter-00000100-ckpt.pth", state=state)
    assert open_checkpoint(folder, None).bos is False
    state["data"]["data"]["options"]["train_data_dir"] = [str(tmp_path / "gone")]
    shutil.rmtree(folder)
    write_checkpoint(folder, state=state)
    assert open_checkpoint(folder, adopted[0] / "tokenizer").bos is None


def frames(folder: Path, output: Path, bos: bool | None) -> tuple[list[int], list[int], list[int]]:
    """A text's ids by `tokenizers`, by transformers, and without special tokens."""
    output.mkdir()
    Tokenizer.load(folder).write_for_transformers(output, 64, bos)
    library = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(output)
    assert adds_bos(theirs) == (theirs.encode(TEXT)[:1] == [theirs.bos_token_id])
    return library.encode(TEXT).ids, theirs.encode(TEXT), library.encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize("post_processor", ["as trained", "none", "with EOS"])
@pytest.mark.parametrize("bos", [True, False])
def test_the_store_decides_whatever_the_tokenizers_files_said(post_processor, bos, tokenizer_dir, tmp_path):
    shutil.copytree(tokenizer_dir, tmp_path / "source")
    definition = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    if post_processor == "none":
        definition["post_processor"] = None
    elif post_processor == "with EOS":
        library = tokenizers.Tokenizer.from_str(json.dumps(definition))
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", library.token_to_id("</s>"))]
        )
        definition = json.loads(library.to_str())
        config["add_eos_token"] = True
    (tmp_path / "source/tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "source/tokenizer_config.json").write_text(json.dumps(config))
    library_ids, their_ids, plain = frames(tmp_path / "source", tmp_path / "exported", bos)
    ours = Tokenizer.load(tokenizer_dir)
    assert library_ids == their_ids == [ours.bos_id] * bos + plain
    if post_processor == "as trained" and bos:
        assert Tokenizer.load(tmp_path / "exported").fingerprint == ours.fingerprint
