"""scripts/generate.py: the same text from a checkpoint and from its folder, streamed, and mistakes named."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from scripts.generate import GenerateOptions, main
from tests.scripts.checkpoints import STATE, write_checkpoint

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


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.content == 'nein' %}{{ raise_exception('not that') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_is_what_the_pipeline_answers(
    checkpoint, folder, tmp_path, tokenizer_dir, capsys, monkeypatch
):
    """Turn after turn with the history, ended by either token, from a checkpoint and from its folder."""
    with pytest.raises(InputError, match="has no chat template"):
        generate(capsys, folder, chat=True, **GREEDY)
    chat = pipeline("text-generation", model=str(folder), device="cpu")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    options = {"chat_template": TEMPLATE, "add_generation_prompt": True, "return_tensors": "pt"}
    ids = chat.tokenizer.apply_chat_template(turns, **options)["input_ids"]
    unended = chat.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    state = STATE | {"chat": {"template": TEMPLATE, "end_of_turn": unended[5]}}
    tuned = write_checkpoint(tmp_path / "iter-00000100-ckpt.pth", state=state)
    convert(ConvertOptions(tuned, tmp_path / "tuned", tokenizer_dir))
    chat = pipeline("text-generation", model=str(tmp_path / "tuned"), device="cpu")
    turns = chat(turns, max_new_tokens=12, do_sample=False)[0]["generated_text"]
    turns.append({"role": "user", "content": "b"})
    turns = chat(turns, max_new_tokens=12, do_sample=False)[0]["generated_text"]
    first, second = (turn["content"] for turn in turns if turn["role"] == "assistant")
    assert first == chat.tokenizer.decode(unended[:6], skip_special_tokens=True)
    capsys.readouterr()
    for model, tokenizer_path in ((tmp_path / "tuned", None), (tuned, tokenizer_dir)):
        options = {"chat": True, "system": "s", "tokenizer_path": tokenizer_path, **GREEDY}
        monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb\n"))
        assert generate(capsys, model, prompt=None, **options) == f"{first}\n{second}\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO("b\n"))  # a script's: not asked after a prompt
        assert generate(capsys, model, prompt="a", **options) == f"{first}\n"
        monkeypatch.setattr(sys, "stdin", Terminal("b\n"))
        assert generate(capsys, model, prompt="a", **options) == f"{first}\n> {second}\n> \n"
    monkeypatch.setattr(sys, "stdin", Terminal("nein\na</s>\nb\n"))  # told, and asked for another
    main(GenerateOptions(tuned, "a", **options))
    told = capsys.readouterr()
    assert told.out == f"{first}\n> > > {second}\n> \n"
    assert "note: the chat template refuses these turns: not that\n" in told.err
    assert "note: this turn has </s>, a control token of the model: leave it out\n" in told.err
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(InputError, match=r"^the chat template refuses these turns: not that$"):
        generate(capsys, tuned, prompt="nein", **options)


def test_options_that_belong_to_others(folder, capsys):
    with pytest.raises(InputError, match="--prompt is missing"):
        generate(capsys, folder, prompt=None)
    with pytest.raises(InputError, match="--system is a turn"):
        generate(capsys, folder, system="s")
    with pytest.raises(InputError, match="--tokenizer_path is for checkpoints"):
        generate(capsys, folder, tokenizer_path=folder)


def test_bytes_that_are_not_utf8_are_named(folder, capsys, monkeypatch):
    """In the C locale Python reads them as lone surrogates."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ein H\xe4us"), errors="surrogateescape"))
    for options in ({"prompt": "-"}, {"prompt": "\udcff"}):
        with pytest.raises(InputError, match=r"^the text is not UTF-8: .*surrogates not allowed"):
            generate(capsys, folder, **options, **GREEDY)


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
