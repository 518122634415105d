"""Programs that others wrote load our folders and agree with our model.

transformers is tried in two versions, in the environments that scripts/client_environments.py makes.
llama.cpp is tried where LLAMA_CPP names its sources and LLAMA_CPP_PYTHON a Python that has llama-cpp-python.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers

from data_prep.tokenizing.train import train_byte_level, train_sentencepiece
from lit_gpt.checkpoint.folder import read_state
from lit_gpt.cli import InputError
from lit_gpt.hf.mapping import from_hf_config, to_hf_config
from lit_gpt.model.config import ModelConfig
from lit_gpt.store.tokenizer import Tokenizer
from scripts.client_environments import TRANSFORMERS, find_python
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from scripts.evaluate import EvaluateOptions, main
from scripts.evaluation.results import load_all
from tests.german import german_texts
from tests.lit_gpt.model.rope_scalings import scalings
from tests.pretrain.running import ROOT
from tests.scripts import client_program, our_model
from tests.scripts.checkpoints import STATE, write_checkpoint

PROMPT = "Der Wald ist"
TEXTS = [PROMPT, " Zwei  Leerzeichen\nund 3,14 €", "„Über“ <s>Straßen</s>", "日本語 🦊", ""]
N_TOKENS = 50

pytestmark = pytest.mark.slow


def run(*command, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | offline | environment,
    )
    assert done.returncode == 0, done.stderr
    return done


TEMPLATE = ROOT / "data_prep/templates/chatml.jinja"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>")
# CONVERSATION of client_program.py, in TEMPLATE
RENDERED = (
    "<s><|im_start|>user\nWer bist du?<|im_end|>\n<|im_start|>assistant\nEin Modell.<|im_end|>\n"
    "<|im_start|>user\nUnd  du?<|im_end|>\n<|im_start|>assistant\n"
)


def random_model(folder: Path, tokenizer: Path, rope_scaling: dict | None = None) -> tuple[Path, Path]:
    """(checkpoint, Hugging Face folder) of random weights: continuations vary, and logits are far apart.

    It ends its turn in RENDERED with the token that its answer is the longest without.
    """
    config = ModelConfig.load("tiny_100K", vocab_size=576, rope_scaling=rope_scaling)
    checkpoint = folder / "iter-00000100-ckpt.pth"
    unended = our_model.load(write_checkpoint(checkpoint, config=config))
    answer = our_model.greedy(unended, rendered_ids(tokenizer), N_TOKENS)
    shutil.rmtree(checkpoint)
    end_of_turn = max(answer, key=answer.index)
    chat = {"template": TEMPLATE.read_text(encoding="utf-8"), "end_of_turn": end_of_turn}
    write_checkpoint(checkpoint, ranks=2, config=config, state=STATE | {"chat": chat})
    convert(ConvertOptions(checkpoint, folder / "hf", tokenizer))
    return checkpoint, folder / "hf"


def rendered_ids(tokenizer: Path) -> list[int]:
    """RENDERED with its special tokens, by the library itself."""
    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return backend.encode(RENDERED, add_special_tokens=False).ids


def assert_continue(
    checkpoint: Path, prompts: list[list[int]], continuations: list[list[int]], never: Sequence[int] = ()
) -> None:
    """They are our own model's, and varied."""
    model = our_model.load(checkpoint)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        assert continuation == our_model.greedy(model, prompt, N_TOKENS, never)
    seen = {token for continuation in continuations for token in continuation}
    assert len(seen) > N_TOKENS / 2, "little variety would agree too easily"


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformers_python(request):
    """A Python that has this version of transformers."""
    python = find_python(request.param)
    if python is None:
        pytest.skip(f"no {request.param}: run python scripts/client_environments.py")
    return python


@pytest.mark.parametrize(("kind", "rope"), [("byte_level", "linear"), ("sentencepiece", "yarn")])
def test_what_a_user_of_transformers_types(tmp_path, transformers_python, kind, rope):
    """`generate(**tokenizer(text))`, batches, `pipeline`, `save_pretrained`, in transformers 4 and 5.

    RoPE is scaled, and continuations run past the length before: both versions read it from one config.json.
    A conversation has one BOS, and the answer ends with its turn.
    """
    tokenizer_dir = tmp_path / "tokenizer"
    train = train_sentencepiece if kind == "sentencepiece" else train_byte_level
    train(german_texts(100, seed=8), 512, tokenizer_dir, SPECIAL_TOKENS)
    checkpoint, folder = random_model(tmp_path, tokenizer_dir, scalings(32)[rope])
    program = Path(__file__).with_name("client_program.py")
    done = run(transformers_python, program, folder, tmp_path / "again", json.dumps(TEXTS), N_TOKENS)
    found = json.loads(done.stdout.splitlines()[-1])
    assert "pad_token_id" not in done.stderr, "transformers has a pad token to complain of"
    assert f"transformers-{found['version']}-" in str(transformers_python)

    tokenizer = Tokenizer.load(tokenizer_dir)
    prompts = [array[:-1].tolist() for array in tokenizer.encode(TEXTS)]
    assert found["inputs"] == ["attention_mask", "input_ids"]
    assert found["literal_ids"] == prompts
    # Only where a text spells a special token do these differ from the ids of training.
    plain = [number for number, text in enumerate(TEXTS) if "<s>" not in text]
    assert [found["ids"][n] for n in plain] == [prompts[n] for n in plain]
    assert found["tokenizers_ids"] == found["ids_again"] == found["ids"]
    assert found["same_logits_again"]

    end_of_turn = read_state(checkpoint)["chat"]["end_of_turn"]
    assert_continue(checkpoint, found["ids"], found["answers"], never=[tokenizer.eos_id, end_of_turn])
    assert found["batch_answers"] == found["answers"]
    length = max(map(len, found["ids"]))
    assert found["batch_ids"] == [[tokenizer.eos_id] * (length - len(ids)) + ids for ids in found["ids"]]
    assert found["batch_mask"] == [[0] * (length - len(ids)) + [1] * len(ids) for ids in found["ids"]]
    assert found["pad"] == ["</s>", tokenizer.eos_id, tokenizer.eos_id]
    assert found["padding_row"] is None, "later training would not move the pad token's embedding"
    assert found["vocabulary"] == tokenizer.vocab_size
    assert found["model_max_length"] == ModelConfig.load(checkpoint).block_size
    conversation = rendered_ids(tokenizer_dir)
    assert conversation.count(tokenizer.bos_id) == 1
    assert found["conversation_ids"] == [conversation, conversation]
    answer = our_model.greedy(our_model.load(checkpoint), conversation, N_TOKENS)
    answer = answer[: answer.index(end_of_turn) + 1]
    assert found["answer"] == {"role": "assistant", "content": tokenizer.decode(answer)}
    for name in ("pipeline", "pipeline_batch"):
        assert [found[name][n] for n in plain] == [found["decoded"][n] for n in plain]


# Also without anything of ours: one config.json after the other, and what AutoConfig reads of it.
READ_CONFIGS = """
import json, pathlib, sys
from transformers import AutoConfig
read = []
for config in json.loads(sys.stdin.read()):
    pathlib.Path(sys.argv[1], "config.json").write_text(json.dumps(config))
    read.append(AutoConfig.from_pretrained(sys.argv[1]).to_dict())
print(json.dumps(read))
"""
# What config.json may hold that changes no logits of a Llama or Mistral.
OF_NO_EFFECT = {
    *("model_type", "transformers_version", "_name_or_path", "dtype", "architectures"),
    *("initializer_range", "attention_dropout", "pretraining_tp"),  # for training, and for how to compute
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "tokenizer_class", "prefix"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "is_encoder_decoder"),  # of other heads
    # For other models, or for generation, in transformers 4 only.
    *("torchscript", "pruned_heads", "is_decoder", "cross_attention_hidden_size", "add_cross_attention"),
    *("tie_encoder_decoder", "finetuning_task", "task_specific_params", "tf_legacy_loss", "use_bfloat16"),
    *("decoder_start_token_id", "max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "bad_words_ids"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
    *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "num_beam_groups"),
    "diversity_penalty",
}
FULL_CONFIG = {
    "vocab_size": 700,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-4,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 7e4,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "sliding_window": None,
}


def meaning(theirs: dict) -> dict:
    """What AutoConfig read, in the words of our table."""
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    known = {key: theirs[key] for key in FULL_CONFIG.keys() & theirs.keys()}
    known["head_dim"] = theirs["head_dim"] or theirs["hidden_size"] // theirs["num_attention_heads"]
    known["rope_theta"] = rope.get("rope_theta") or theirs["rope_theta"]
    kind = rope.get("rope_type", "default")
    known["rope_scaling"] = None if kind == "default" else {"rope_type": kind, "factor": rope["factor"]}
    return known


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_config_json_means_what_transformers_reads(tmp_path, transformers_python, kind):
    """Nothing, every single key, and everything but one key: the same shape, or a refusal that is right."""
    full = {"model_type": kind, **FULL_CONFIG}
    cases = [
        {"model_type": kind},
        full,
        *({"model_type": kind, key: value} for key, value in FULL_CONFIG.items()),
        *({k: v for k, v in full.items() if k != key} for key in FULL_CONFIG),
    ]
    done = run(transformers_python, "-c", READ_CONFIGS, tmp_path, stdin=json.dumps(cases))
    read = json.loads(done.stdout.splitlines()[-1])
    windowed = 0
    for case, theirs in zip(cases, read, strict=True):
        assert theirs.keys() - FULL_CONFIG.keys() - {"rope_parameters"} <= OF_NO_EFFECT
        expected = meaning(theirs)
        window = expected.pop("sliding_window", None)
        if window is not None and window < expected["max_position_embeddings"]:
            windowed += 1
            with pytest.raises(InputError, match="windowed attention is not supported"):
                from_hf_config(case, "trial")
        else:
            ours = to_hf_config(from_hf_config(case, "trial"))
            assert {key: ours[key] for key in expected} == expected
    assert bool(windowed) == (kind == "mistral"), "what Mistral reads of an empty configuration is windowed"


def test_the_harness_as_it_is_typed_agrees_with_our_command(tmp_path, converted_run, own_tasks):
    folder = converted_run / "iter-00000040"
    main(EvaluateOptions(folder, tmp_path / "ours", ["eigene"], own_tasks, device="cpu"))
    [ours] = load_all(tmp_path / "ours")
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder},add_bos_token=True"]
    arguments += ["--tasks", "eigene", "--include_path", own_tasks, "--output_path", tmp_path / "theirs.json"]
    run(sys.executable, "-m", "lm_eval", "run", *arguments, "--device", "cpu", "--batch_size", "4")
    [path] = tmp_path.glob("theirs*.json")
    theirs = json.loads(path.read_text())["results"]["fortsetzung"]
    for metric, score in ours.tasks["eigene"]["fortsetzung"].metrics.items():
        assert theirs[f"{metric},none"] == pytest.approx(score.value, abs=1e-4)
        assert theirs[f"{metric}_stderr,none"] == pytest.approx(score.stderr, abs=1e-4)


@pytest.fixture(scope="module")
def llama_cpp():
    """(sources, Python)"""
    sources, python = os.environ.get("LLAMA_CPP"), os.environ.get("LLAMA_CPP_PYTHON")
    if not (sources and python):
        pytest.skip("LLAMA_CPP and LLAMA_CPP_PYTHON are not set, see docs/clients.md")
    return Path(sources), python


LLAMA_CPP_PROGRAM = """
import itertools, json, sys
from llama_cpp import GGML_TYPE_F32, Llama, llama_vocab_is_eog
path, texts, n_tokens, turns = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
# By default keys and values are kept in fp16, which random weights make a difference of 0.5 in logits.
cache = dict(type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32)
model = Llama(path, n_ctx=128, n_threads=1, verbose=False, **cache)
ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
likeliest = dict(top_k=1, temp=0.0, repeat_penalty=1.0)
answers = [list(itertools.islice(model.generate(i, **likeliest), n_tokens)) for i in ids]
sampling = dict(top_k=1, temperature=0.0, repeat_penalty=1.0, max_tokens=1)
chat = model.create_chat_completion(turns, **sampling)
ends = [token for token in range(model.n_vocab()) if llama_vocab_is_eog(model._model.vocab, token)]
print(json.dumps([ids, answers, chat["usage"]["prompt_tokens"], ends]))
"""


@pytest.mark.parametrize("rope", ["none", "linear", "llama3", "yarn"])
def test_llama_cpp_continues_as_our_model_does(tmp_path, llama_cpp, rope):
    # Of tokenizers without a tokenizer.model llama.cpp takes only those that it knows.
    train_sentencepiece(german_texts(100, seed=8), 512, tmp_path / "tokenizer", SPECIAL_TOKENS)
    checkpoint, folder = random_model(tmp_path, tmp_path / "tokenizer", scalings(32)[rope])
    sources, python = llama_cpp
    model = tmp_path / "model.gguf"
    run(python, sources / "convert_hf_to_gguf.py", folder, "--outfile", model, "--outtype", "f32")
    turns = json.dumps(client_program.CONVERSATION)
    done = run(python, "-c", LLAMA_CPP_PROGRAM, model, json.dumps(TEXTS), N_TOKENS, turns)
    ids, continuations, n_asked, ends = json.loads(done.stdout.splitlines()[-1])
    assert ids == [array[:-1].tolist() for array in Tokenizer.load(tmp_path / "tokenizer").encode(TEXTS)]
    assert_continue(checkpoint, ids, continuations)
    conversation = rendered_ids(tmp_path / "tokenizer")
    assert n_asked == len(conversation), "BOS comes from the template alone"
    tokenizer = Tokenizer.load(folder)
    assert ends == [tokenizer.eos_id, tokenizer.id_of("<|im_end|>")]  # known by its text
