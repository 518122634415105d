"""Merged folders: numpy's result, bitwise at the ends, refused where models do not belong together.

mergekit is tried where MERGEKIT_PYTHON names a Python that has it, see docs/merging.md.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_gpt.cli import run_command
from lit_gpt.hashed_files import sha256_of
from scripts.merge_models import MergeOptions, main
from scripts.publish import model_files
from tests.pretrain.running import environment

ROOT = Path(__file__).resolve().parents[2]
IDS = 512
"""Of the base's tokenizer; the models have 8 rows more."""


def add_tokens(folder: Path, *tokens: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(list(tokens))
    backend.save(str(folder / "tokenizer.json"))


def save_model(
    folder: Path, tokenizer_dir: Path, seed: int, dtype=torch.float32, shard="1GB", **changes
) -> Path:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": IDS + 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**fields | changes))
    for parameter in model.parameters():  # norms too, and a negative zero in each
        parameter.data = torch.randn_like(parameter) * 0.1
        parameter.data.flatten()[3] = -0.0
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    for path in tokenizer_dir.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def assert_bitwise_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value.view(torch.uint8), other[key].view(torch.uint8)), key


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in weights_of(folder).items()}


def assert_close(folder: Path, expected: dict[str, np.ndarray], tolerance: float) -> None:
    merged = arrays_of(folder)
    assert merged.keys() == expected.keys()
    for key, value in merged.items():
        np.testing.assert_allclose(value, expected[key], rtol=tolerance, atol=tolerance * 1e-2, err_msg=key)


@pytest.fixture
def three(tmp_path, tokenizer_dir):
    """Models a, b and c."""
    return [save_model(tmp_path / name, tokenizer_dir, seed) for seed, name in enumerate("abc")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_chat_vector_changes_the_tokens_of_the_base_only(tmp_path, tokenizer_dir, dtype, tolerance):
    base = save_model(tmp_path / "base", tokenizer_dir, 0, torch.float16, vocab_size=IDS)
    chat = save_model(tmp_path / "chat", tokenizer_dir, 1, torch.float16, shard="40KB", vocab_size=IDS + 2)
    cpt = save_model(tmp_path / "cpt", tokenizer_dir, 2, dtype, shard="40KB", vocab_size=IDS + 64)
    add_tokens(chat, "<|im_start|>", "<|im_end|>")
    add_tokens(cpt, *(f"deutsch{number}" for number in range(50)))
    linked = tmp_path / "snapshot"  # as in the hub's cache
    linked.mkdir()
    for path in base.iterdir():
        (linked / path.name).symlink_to(path)
    main(
        MergeOptions(
            "chat_vector", tmp_path / "out", cpt=cpt, chat=chat, base=linked, w=0.5, max_shard_gb=4e-5
        )
    )

    (c, d, b), expected = map(arrays_of, (cpt, chat, base)), {}
    for key, value in c.items():
        shared = IDS if key in ("model.embed_tokens.weight", "lm_head.weight") else len(value)
        expected[key] = value.copy()
        expected[key][:shared] += 0.5 * (d[key][:shared] - b[key][:shared])
    assert_close(tmp_path / "out", expected, tolerance)
    merged = weights_of(tmp_path / "out")
    assert {value.dtype for value in merged.values()} == {dtype}
    assert torch.equal(merged["lm_head.weight"][IDS:], weights_of(cpt)["lm_head.weight"][IDS:])
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (cpt / name).read_bytes()
    record = json.loads((tmp_path / "out/merge.json").read_text())
    assert (record["method"], record["w"], record["shared_ids"]) == ("chat_vector", 0.5, IDS)
    assert record["sources"]["base"]["folder"] == str(linked)
    assert record["sources"]["base"]["sha256"] == {
        name: sha256_of(base / name) for name in ("config.json", "tokenizer.json", "model.safetensors")
    }


def test_slerp_turns_each_tensor_as_one_vector(tmp_path, three):
    one, other, _ = three
    nearly_parallel = "model.norm.weight"
    tensors = weights_of(other)
    tensors[nearly_parallel] = 2 * weights_of(one)[nearly_parallel] + 1e-5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    main(MergeOptions("slerp", tmp_path / "out", models=[one, other], t=0.3))

    a, b, expected = arrays_of(one), arrays_of(other), {}
    for key in a:
        cosine = np.sum(a[key] * b[key]) / np.linalg.norm(a[key]) / np.linalg.norm(b[key])
        angle = np.arccos(cosine)
        factors = (0.7, 0.3) if abs(cosine) > 0.9995 else np.sin([0.7 * angle, 0.3 * angle]) / np.sin(angle)
        expected[key] = factors[0] * a[key] + factors[1] * b[key]
        assert (abs(cosine) > 0.9995) == (key == nearly_parallel)
    assert_close(tmp_path / "out", expected, 1e-5)


def test_linear_is_the_weighted_mean(tmp_path, three):
    main(MergeOptions("linear", tmp_path / "out", models=three, weights=[2, 1, 5]))
    a, b, c = map(arrays_of, three)
    assert_close(tmp_path / "out", {key: (2 * a[key] + b[key] + 5 * c[key]) / 8 for key in a}, 1e-5)
    main(MergeOptions("linear", tmp_path / "same", models=three))
    assert_close(tmp_path / "same", {key: (a[key] + b[key] + c[key]) / 3 for key in a}, 1e-5)


@pytest.mark.parametrize(("dtype", "tied"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_ends_are_bitwise_the_models(tmp_path, tokenizer_dir, dtype, tied):
    models = [
        save_model(tmp_path / name, tokenizer_dir, seed, dtype, tie_word_embeddings=tied)
        for seed, name in enumerate("abc")
    ]
    chat_vector = dict(zip(("cpt", "chat", "base"), models, strict=True))
    ends = [
        (0, MergeOptions("chat_vector", tmp_path / "w0", **chat_vector, w=0)),
        (0, MergeOptions("slerp", tmp_path / "t0", models=models[:2], t=0)),
        (1, MergeOptions("slerp", tmp_path / "t1", models=models[:2], t=1)),
        (2, MergeOptions("linear", tmp_path / "third", models=models, weights=[0, 0, 7])),
    ]
    for number, options in ends:
        main(options)
        assert_bitwise_equal(weights_of(options.output), weights_of(models[number]))


def test_the_folder_loads_generates_and_can_be_published(tmp_path, three):
    main(MergeOptions("slerp", tmp_path / "out", models=three[:2]))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = model.generate(**tokenizer("Es war", return_tensors="pt"), min_new_tokens=5, max_new_tokens=5)
    assert ids.shape[1] == len(tokenizer("Es war")["input_ids"]) + 5
    assert "merge.json" in model_files(tmp_path / "out")


# Forks instead of starting: what takes time is the import of torch.
KILLED_AT_EVERY_CHANGE = """
import itertools, os, signal, sys
from pathlib import Path
from scripts.merge_models import MergeOptions, main
a, b, output = map(Path, sys.argv[1:])
temporary = output.with_name(output.name + ".tmp")
for deadline in itertools.count(1):
    if not (child := os.fork()):
        seen = itertools.count(1)
        def audit(event, arguments):
            if event in ("open", "os.rename", "os.mkdir") and str(arguments[0]).startswith(str(temporary)):
                if next(seen) == deadline:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(audit)
        main(MergeOptions("linear", output, models=[a, b], max_shard_gb=1e-4))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert not output.exists()
    if (temporary / "config.json").exists():  # the last file: all others are there
        assert (temporary / "merge.json").exists() and (temporary / "model.safetensors.index.json").exists()
print(deadline - 1)
"""


@pytest.mark.slow
def test_a_merge_killed_at_any_change_leaves_no_folder(tmp_path, three):
    main(MergeOptions("linear", tmp_path / "undisturbed", models=three[:2], max_shard_gb=1e-4))
    arguments = [three[0], three[1], tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_CHANGE, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 10
    names = {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names - {"README.md"}:  # its title is the folder's name
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not (tmp_path / "out.tmp").exists()


def change_tensors(folder: Path, change) -> None:
    tensors = weights_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = definition["model"]["vocab"]
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    vocabulary[by_id[400]], vocabulary[by_id[401]] = 401, 400
    path.write_text(json.dumps(definition), encoding="utf-8")


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


CHAT = ["--method", "chat_vector", "--cpt", "a", "--chat", "b", "--base", "c"]
LINEAR = ["--method", "linear", "--models", "a", "b"]
SLERP = ["--method", "slerp", "--models", "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (CHAT, change_token, "b: id 400 is '.+', in .*c it is '.+'; models of different tokenizers"),
        (SLERP, change_token, "b: id 400 is '.+', in .*a it is '.+'; models of different tokenizers"),
        (LINEAR, lambda b: add_tokens(b.with_name("a"), "neu"), "b: id 512 is None, in .*a it is 'neu'"),
        # The tensors have the same shapes.
        (LINEAR, lambda b: change_config(b, head_dim=4, num_attention_heads=8, num_key_value_heads=4),
         "b: is not of the shape of a: n_head 8 instead of 4"),
        (SLERP, lambda b: change_config(b, rope_parameters={"rope_theta": 1e6}), "rope_base 1000000.0 inst"),
        (CHAT, lambda b: change_tensors(b, lambda t: t.pop("model.norm.weight")), "norm.weight is missing"),
        (CHAT, lambda b: change_tensors(b, lambda t: t.update(extra=torch.ones(2))), "extra is a tensor"),
        (CHAT, lambda b: change_tensors(b, lambda t: t.update({"lm_head.weight": torch.ones(9, 32)})),
         r"lm_head.weight has shape \(9, 32\), config.json wants \(520, 32\)"),
        (CHAT, lambda b: change_tensors(b, lambda t: t.update({k: v.half() for k, v in t.items()})),
         "b: model.embed_tokens.weight is torch.float16, in c it is torch.float32"),
        ([*CHAT, "--w", "10"], lambda b: change_tensors(b, lambda t: t["model.norm.weight"].fill_(3e38)),
         "model.norm.weight of the merged model has NaN or infinite values in torch.float32"),
        (CHAT, lambda b: shutil.rmtree(b), "b/config.json is missing"),
        (CHAT, lambda b: (b / "tokenizer.json").unlink(), "b/tokenizer.json is missing"),
        (CHAT[:-2], None, "chat_vector needs --base"),
        ([*CHAT, "--t", "0.5"], None, "--t is not an option of chat_vector"),
        ([*SLERP, "c"], None, "--models: slerp takes two, not 3"),
        ([*LINEAR[:-1]], None, "--models: linear takes two or more, not 1"),
        ([*LINEAR, "--weights", "1", "2", "3"], None, "--weights: give one for each of 2 models"),
        ([*LINEAR, "--weights", "0", "0"], None, "2 models, not all of them 0"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, capsys, three, arguments, spoil, message):
    monkeypatch.chdir(tmp_path)
    if spoil is not None:
        spoil(three[1])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(MergeOptions, main, [*arguments, "--output", "out"])
    assert ended.value.code == 2
    *bar, line = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert all(text.startswith("weights:") for text in bar)
    assert not list(tmp_path.glob("out*"))


def save_large(folder: Path, source: Path, vocab_size: int) -> Path:
    """The folder with that many rows, whose bytes are a hole in the file: zeros that nobody wrote."""
    shutil.copytree(source, folder)
    change_config(folder, vocab_size=vocab_size)
    header, end = {}, 0
    for key, value in weights_of(source).items():
        shape = [vocab_size, 32] if len(value) == IDS + 8 else list(value.shape)
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


PEAK = """
import resource, sys
from pathlib import Path
from scripts.merge_models import MergeOptions, main
a, b, output = map(Path, sys.argv[1:])
main(MergeOptions("slerp", output, models=[a, b]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path, three):
    """1 GB in two tensors."""
    large = [save_large(tmp_path / f"large-{name}", three[0], 4_000_000) for name in "ab"]

    def peak(*folders: Path) -> int:
        command = [sys.executable, "-c", PEAK, *map(str, folders)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1])

    assert (large[0] / "model.safetensors").stat().st_size > 1e9
    extra = peak(*large, tmp_path / "large") - peak(three[0], three[1], tmp_path / "small")
    assert extra < 100e6
    shutil.rmtree(tmp_path / "large")


@pytest.fixture(scope="module")
def mergekit():
    if not (python := os.environ.get("MERGEKIT_PYTHON")):
        pytest.skip("MERGEKIT_PYTHON is not set, see docs/merging.md")
    return python


@pytest.mark.parametrize("method", ["chat_vector", "slerp", "linear"])
def test_mergekit_gives_the_same(tmp_path, tokenizer_dir, mergekit, method):
    # No rows beyond the tokenizer's, which mergekit's task arithmetic changes too.
    three = [save_model(tmp_path / name, tokenizer_dir, n, vocab_size=IDS) for n, name in enumerate("abc")]
    a, b, c = three
    entries = [{"model": str(folder)} for folder in three]
    if method == "chat_vector":  # c + (a - c) + 0.7 (b - c), with a larger vocabulary in a
        a = save_model(a, tokenizer_dir, 0, vocab_size=IDS + 64)
        add_tokens(a, *(f"deutsch{number}" for number in range(64)))
        weights, kind = [1.0, 0.7], "task_arithmetic"
        given = {"base_model": str(c), "tokenizer": {"source": "union"}}
        options = MergeOptions(method, tmp_path / "ours", cpt=a, chat=b, base=c, w=0.7)
    elif method == "linear":
        weights, kind, given = [2.0, 1.0, 5.0], "linear", {"parameters": {"normalize": True}}
        options = MergeOptions(method, tmp_path / "ours", models=three, weights=weights)
    else:
        weights, kind, given = [1.0, 1.0], "slerp", {"base_model": str(a), "parameters": {"t": 0.3}}
        options = MergeOptions(method, tmp_path / "ours", models=[a, b], t=0.3)
    models = [entry | {"parameters": {"weight": w}} for entry, w in zip(entries, weights, strict=False)]
    plan: dict[str, object] = {"merge_method": kind, "models": models, "dtype": "float32", **given}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    main(options)
    command = [mergekit, "-m", "mergekit.scripts.run_yaml", tmp_path / "plan.yaml", tmp_path / "theirs"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "ours", arrays_of(tmp_path / "theirs"), 1e-5)
