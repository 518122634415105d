"""scripts/generate.py: the same text from a checkpoint and from its folder, streamed, and mistakes named."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from scripts.generate import GenerateOptions, main
from tests.scripts.checkpoints import write_checkpoint

GREEDY = {"max_new_tokens": 12, "temperature": 0.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "iter-00000100-ckpt.pth", ranks=2)


@pytest.fixture
def folder(checkpoint, tmp_path, tokenizer_dir):
    convert(ConvertOptions(checkpoint, tmp_path / "hf", tokenizer_dir))
    return tmp_path / "hf"


def generate(capsys, model, prompt="Der Wald", **options) -> str:
    main(GenerateOptions(model, prompt, **options))
    return capsys.readouterr().out


def test_a_checkpoint_and_its_folder_say_the_same(checkpoint, folder, tokenizer_dir, capsys):
    ids = Tokenizer.load(tokenizer_dir).encode(["Der Wald"])[0][:-1].astype(int).tolist()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    capsys.readouterr()
    assert generate(capsys, folder, **GREEDY).strip() == text.strip()
    assert generate(capsys, checkpoint, tokenizer_path=tokenizer_dir, **GREEDY).strip() == text.strip()


def test_draws_repeat_with_their_seed(folder, capsys):
    options = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1}
    first, again, other = (generate(capsys, folder, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_prompt_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ein Haus"))
    assert generate(capsys, folder, prompt="-", **GREEDY).startswith("Ein Haus")


def test_a_chat_template_is_used_if_there_is_one(folder, capsys):
    with pytest.raises(InputError, match="has no chat template"):
        generate(capsys, folder, chat=True, **GREEDY)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}Frage: {{ m.content }} Antwort: {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = generate(capsys, folder, prompt="Wie weit?", chat=True, **GREEDY)
    assert text.startswith("Frage: Wie weit? Antwort: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "", "does not load"),
        ("config.json", "[]", "does not load"),
        ("config.json", "{}", "does not load"),
        ("config.json", '{"model_type": "llama", "vocab_size": "many"}', "does not load"),
        ("config.json", '{"model_type": "nonsense"}', "does not load"),
        ("tokenizer.json", "{}", "does not load"),
        ("tokenizer.json", "nothing", "does not load"),
        ("tokenizer_config.json", "[]", "does not load"),
        ("model.safetensors", "short", "does not load"),
        ("model.safetensors", "", "does not load"),
        ("generation_config.json", "[1]", "does not load"),
    ],
)
def test_malformed_folders_are_named(name, content, message, folder, capsys):
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=f"^--model {folder} {message}") as error:
        generate(capsys, folder, **GREEDY)
    assert len(str(error.value)) < 500


def test_a_folder_that_lacks_weights_is_refused(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing, the first is model\.norm\.weight"):
        generate(capsys, folder, **GREEDY)


def test_folders_that_hold_no_model(folder, tmp_path, capsys):
    with pytest.raises(InputError, match="no such folder"):
        generate(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a Hugging Face folder"):
        generate(capsys, tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="does not load"):
        generate(capsys, folder)


def test_code_that_a_folder_names_is_not_run(folder, tmp_path, capsys):
    (folder / "planted.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        config = json.loads((folder / name).read_text())
        config["auto_map"] = {key: "planted.Planted" if key != "AutoTokenizer" else ["planted.Planted", None]}
        (folder / name).write_text(json.dumps(config))
    generate(capsys, folder, **GREEDY)
    assert not (tmp_path / "ran").exists()
