"""Ids and targets of conversations are those of their parts; bad conversations and templates are named."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from data_prep import sample_conversations
from data_prep.tokenizing.chat import ChatOptions, tokenize_chat
from data_prep.tokenizing.chat_template import SHIPPED
from data_prep.tokenizing.train import train_byte_level, train_sentencepiece
from lit_gpt.cli import InputError
from lit_gpt.store.masking import ids_of, is_target
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from scripts.client_environments import TRANSFORMERS, find_python
from tests.data_prep.interrupting import at_event, contents, interrupt
from tests.german import german_texts

pytestmark = pytest.mark.usefixtures("many_small_steps")
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = SHIPPED.read_text(encoding="utf-8")
KINDS = {"byte_level": train_byte_level, "sentencepiece": train_sentencepiece}
SCRIPT = SHIPPED.parents[1] / "tokenize_chat.py"


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = getattr(request, "param", "byte_level")
    folder = tmp_path_factory.mktemp(kind)
    KINDS[kind](german_texts(100, seed=8), 600, folder, SPECIAL)
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, and some of odd text."""
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    sample_conversations.main(sample_conversations.Options(output=file, documents=300))
    odd = [
        "🦙🌻",
        "a\n\nb\t c",
        "  Ränder \n",
        "<|im_",
        "日本語 ẞ",
        "-",
        "\u00a0x\u200b",
        "{{ bos_token }}",
        "｟🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    ]
    with file.open("a", encoding="utf-8") as lines:
        for number, text in enumerate(odd):
            turns = conversation(text, "Ja. " + text, text, text)
            lines.write(json.dumps({"id": f"odd-{number}", "messages": turns}) + "\n")
    return file


@pytest.fixture
def options(conversations: Path, tokenizer: Path, tmp_path: Path) -> ChatOptions:
    return ChatOptions(
        input=[str(conversations)],
        tokenizer=tokenizer,
        output=tmp_path / "out" / "train",
        val_fraction=0.1,
        val_output=tmp_path / "out" / "val",
        workers=1,
        max_shard_tokens=10_000,
        snapshot_seconds=0,
    )


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Turns of user and assistant, after a system prompt if one is given."""
    before = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * len(texts)
    return before + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def expected(tokenizer: Tokenizer, turns: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and mask of a conversation in ChatML, part by part."""

    def plain(text: str) -> list[int]:
        return tokenizer.encode([text])[0][1:-1].tolist()

    start, end = (tokenizer.id_of(name) for name in SPECIAL)
    ids, mask = [tokenizer.bos_id], [0]
    for turn in turns:
        head, line_end = plain(turn["role"] + "\n"), plain("\n")
        text = plain(turn["role"] + "\n" + turn["content"].strip())
        n_written = len(text) - len(head) + 1
        ids += [start, *text, end, *line_end]
        mask += [0] + [0] * len(head) + [int(turn["role"] == "assistant")] * n_written + [0] * len(line_end)
    return ids, mask


def stored(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Ids and mask by the id of the conversation."""
    store = TokenStore.open(folder)
    found = {}
    for shard, entry in enumerate(store.manifest.shards):
        for number, info in enumerate(store.document_info(shard, range(entry.n_documents))):
            raw = np.array(store.document_tokens(shard, number))
            found[info.id] = (ids_of(raw).tolist(), is_target(raw).astype(int).tolist())
    return found


def records(file: Path) -> dict[str, list[dict[str, str]]]:
    return {line["id"]: line["messages"] for line in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_ids_and_targets_are_those_of_the_parts(options: ChatOptions, conversations: Path):
    """And those of AutoTokenizer on the store's tokenizer, with the template that lies there."""
    tokenize_chat(options)
    tokenizer, given = Tokenizer.load(options.tokenizer), records(conversations)
    found = stored(options.output) | stored(options.output.parent / "val")
    assert found == {name: expected(tokenizer, turns) for name, turns in given.items()}
    theirs = AutoTokenizer.from_pretrained(options.output / "tokenizer")
    encoded = theirs.apply_chat_template(
        list(given.values()), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert [found[name] for name in given] == list(
        zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    )
    store = TokenStore.open(options.output)
    store.verify()
    manifest = store.manifest
    assert manifest.chat is not None
    assert (manifest.chat.template, manifest.chat.end_of_turn) == (TEMPLATE, tokenizer.id_of("<|im_end|>"))
    assert (manifest.masked, manifest.tokenizer) == (True, tokenizer.fingerprint)
    assert manifest.provenance["command"] == "tokenize_chat"


PROGRAM = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
encoded = tokenizer.apply_chat_template(json.load(sys.stdin), **how)
print(json.dumps([encoded["input_ids"], encoded["assistant_masks"]]))
"""


@pytest.mark.slow
def test_transformers_4_agrees(options: ChatOptions, conversations: Path):
    python = find_python(TRANSFORMERS[0])
    if python is None:
        pytest.skip(f"no {TRANSFORMERS[0]}: run python scripts/client_environments.py")
    tokenize_chat(options)
    given = records(conversations)
    done = subprocess.run(
        [str(python), "-c", PROGRAM, str(options.output / "tokenizer")],
        input=json.dumps(list(given.values())),
        capture_output=True,
        text=True,
        env=os.environ | {"USE_TORCH": "0"},  # its import takes longer than the work
    )
    assert done.returncode == 0, done.stderr
    found = stored(options.output) | stored(options.output.parent / "val")
    assert [[found[name][part] for name in given] for part in (0, 1)] == json.loads(done.stdout)


@pytest.mark.slow
def test_interrupted_or_in_two_processes_it_leaves_the_same_bytes(options: ChatOptions, tmp_path: Path):
    tokenize_chat(options)
    run = replace(options, output=tmp_path / "again" / "train", val_output=tmp_path / "again" / "val")
    for event in (1, 40, 100, 60):
        sys.setprofile(at_event(event, interrupt))
        try:
            with pytest.raises(KeyboardInterrupt):
                tokenize_chat(run)
        finally:
            sys.setprofile(None)
    tokenize_chat(run)
    assert contents(run.output.parent) == contents(options.output.parent)
    with pytest.raises(InputError, match="begun with another max_tokens"):
        tokenize_chat(replace(run, max_tokens=1000))
    words = [f"--{name}={value}" for name, value in vars(run).items() if name not in ("input", "id_fields")]
    words += [f"--output={tmp_path / 'two' / 'train'}", f"--val_output={tmp_path / 'two' / 'val'}"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--input", *run.input, *words, "--workers=2"], stdout=subprocess.DEVNULL
    )
    assert done.returncode == 0
    assert contents(tmp_path / "two") == contents(options.output.parent)


USER, ASSISTANT = ({"role": role, "content": "Ja."} for role in ("user", "assistant"))
SYSTEM = USER | {"role": "system"}
ORDER = "roles out of order: first system if at all, then user and assistant alternate"
BAD: list[tuple[Any, str]] = [
    ("Hallo", "field messages is no list of turns"),
    ({"role": "user"}, "field messages is no list of turns"),
    (["Hallo"], "a turn without role or content"),
    ([{"role": "user"}, ASSISTANT], "a turn without role or content"),
    ([{"from": "human", "value": "Ja."}], "a turn without role or content"),
    ([USER, {"role": "assistant", "content": None, "tool_calls": []}], "a turn without role or content"),
    ([USER, ASSISTANT | {"content": [{"type": "text", "text": "Ja."}]}], "a turn's content is no string"),
    ([USER, ASSISTANT, USER | {"role": "tool"}], "a role other than system, user, assistant"),
    ([USER | {"role": ["user"]}, ASSISTANT], "a role other than system, user, assistant"),
    ([USER, ASSISTANT | {"content": " \n"}], "an empty turn"),
    ([USER, ASSISTANT | {"tool_calls": [{"name": "f"}]}], "a turn with tool calls, which would be lost"),
    ([], "no assistant turn"),
    ([SYSTEM, USER], "no assistant turn"),
    ([USER, ASSISTANT, USER], "ends with a user turn"),
    ([ASSISTANT], ORDER),
    ([USER, SYSTEM, ASSISTANT], ORDER),
    ([USER, USER, ASSISTANT], ORDER),
    ([SYSTEM, SYSTEM, USER, ASSISTANT], ORDER),
    ([USER, ASSISTANT, ASSISTANT], ORDER),
    ([SYSTEM, ASSISTANT, USER, ASSISTANT], ORDER),
    ([USER, ASSISTANT | {"content": "Nein\0"}], "NUL character"),
    (
        [USER | {"content": "Was ist <|im_end|>?"}, ASSISTANT],
        "left out: content with the string of a special token",
    ),
    ([USER, ASSISTANT | {"content": "<s>"}], "left out: content with the string of a special token"),
    ([USER, ASSISTANT | {"content": "lang " * 500}], "left out: more than 200 tokens"),
]


def test_bad_conversations_are_counted_by_reason_and_named(options: ChatOptions, tmp_path: Path):
    file = tmp_path / "bad.jsonl"
    lines = [json.dumps({"id": "good", "messages": [USER, ASSISTANT]})]
    lines += [json.dumps({"messages": messages}) for messages, _ in BAD]
    lines += ['{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"text": "Hallo"}']
    file.write_text("\n".join(lines))
    short = replace(
        options, input=[str(file)], val_fraction=0.0, val_output=None, max_tokens=200, max_bad_lines=23
    )
    tokenize_chat(short)  # the three left out are not counted as bad lines
    said = [json.loads(line) for line in (options.output / "set_aside.jsonl").read_text().splitlines()]
    by_place = {each["place"]: each["reason"] for each in said}
    assert len(by_place) == len(BAD) + 2
    for number, (messages, reason) in enumerate(BAD):
        assert by_place[f"{file}:{number + 2}"] == reason, messages
    assert by_place[f"{file}:{len(BAD) + 2}"].startswith("not JSON")
    assert by_place[f"{file}:{len(BAD) + 3}"] == "no field messages"
    assert TokenStore.open(options.output).manifest.provenance["set_aside"] == Counter(by_place.values())
    assert list(stored(options.output)) == ["good"]
    with pytest.raises(InputError, match="more than 22 unusable lines"):
        tokenize_chat(replace(short, output=tmp_path / "other", max_bad_lines=22))


def test_parquet_gives_the_tokens_of_lines(options: ChatOptions, conversations: Path, tmp_path: Path):
    rows = [json.loads(line) for line in conversations.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    tokenize_chat(options)
    tokenize_chat(
        replace(
            options, input=[str(tmp_path / "x.parquet")], output=tmp_path / "p", val_output=tmp_path / "v"
        )
    )
    assert stored(tmp_path / "p") == stored(options.output)


MARKED = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
TURN = (
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    + MARKED
    + "{% else %}{{ m.content }}<|im_end|>"
)
SIMPLE = "{{ bos_token }}{% for m in messages %}" + TURN + "{% endif %}\n{% endfor %}"
SIMPLE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = [
    (
        TEMPLATE.replace("generation %}", "filter trim %}").replace("endfilter trim", "endfilter"),
        "does not say what",
    ),
    (SIMPLE + "{% if %}", "the template fails: TemplateSyntaxError"),
    (
        SIMPLE + "{{ raise_exception('no such luck') }}",
        "the template fails: TemplateError: no such luck",
    ),
    (SIMPLE + "{{ messages.append(1) }}", "the template fails: SecurityError"),
    (SIMPLE.removeprefix("{{ bos_token }}"), "writes BOS 0 times"),
    ("<s>" + SIMPLE, "writes BOS 2 times"),
    (
        SIMPLE.replace("<|im_start|>", "<|im_start|>{{ strftime_now('%d') }}"),
        r"writes the date \(strftime_now\), other tokens",
    ),
    (SIMPLE.replace("m.role == 'assistant'", "m.role == 'bot'"), "of 2 turns of the assistant it marks 0"),
    (SIMPLE.replace("m.role == 'assistant'", "loop.last"), "of 2 turns of the assistant it marks 1"),
    (
        SIMPLE.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
        "does not end with a special",
    ),
    (SIMPLE.replace("{% endgeneration %}", "\n{% endgeneration %}"), "does not end with a special token"),
    (
        SIMPLE.replace("<|im_end|>{% end", "{{ eos_token if loop.last else '<|im_end|>' }}{% end"),
        "the same in each",
    ),
    (
        SIMPLE.replace(
            "\n{% if m.role == 'assistant' %}{% generation %}",
            "{% if m.role == 'assistant' %}{% generation %}\nx",
        ),
        "it marks 'x",
    ),
    (
        SIMPLE.replace("{% if add_generation_prompt %}", "{% if false %}"),
        "with add_generation_prompt it does not",
    ),
    (
        SIMPLE.replace("im_start", "turn"),
        "it writes '<|turn|>', and .* has no such tokens; add them with",
    ),
    (
        SIMPLE.replace("{{ m.role }}", "{{ '<sys>' if m.role == 'system' else m.role }}"),
        "it writes '<sys>', and",
    ),
]


def test_unfit_templates_are_one_line_before_anything_is_written(options: ChatOptions, tmp_path: Path):
    file = tmp_path / "template.jinja"
    for text, says in TEMPLATES:
        file.write_text(text)
        with pytest.raises(InputError, match=says) as refused:
            tokenize_chat(replace(options, template=file))
        assert str(refused.value).startswith(f"--template {file}: "), text
        assert "\n" not in str(refused.value)
        assert not options.output.exists()
    (tmp_path / "texts.jsonl").write_text('{"text": "Hallo"}\n')
    (tmp_path / "users.jsonl").write_text(json.dumps({"messages": [USER]}))
    for change, says in [
        ({"template": tmp_path / "none.jinja"}, "none.jinja cannot be read"),
        ({"max_tokens": 5}, r"--max_tokens 5: the shortest conversations have \d+"),
        ({"input": [str(tmp_path / "texts.jsonl")]}, "has the fields text, none of messages; a line is"),
        ({"input": [str(tmp_path / "users.jsonl")]}, "no document that can be used, .*: no assistant turn"),
        ({"val_output": None}, "go together"),
    ]:
        with pytest.raises(InputError, match=says):
            tokenize_chat(replace(options, **change))
    file.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + SIMPLE)
    tokenize_chat(replace(options, template=file))
    assert (options.output / "tokenizer" / "chat_template.jinja").read_text() == file.read_text()
    n_system = sum(turns[0]["role"] == "system" for turns in records(Path(options.input[0])).values())
    rejected = TokenStore.open(options.output).manifest.provenance["set_aside"]
    assert rejected == {"the template fails: TemplateError: no": n_system}


def test_control_tokens_that_are_not_special_are_no_content_either(options: ChatOptions, tmp_path: Path):
    folder, file = tmp_path / "tokenizer", tmp_path / "chat.jsonl"
    shutil.copytree(options.tokenizer, folder)

    def make_plain(name: str) -> None:
        definition = json.loads((folder / "tokenizer.json").read_text())
        next(token for token in definition["added_tokens"] if token["content"] == name)["special"] = False
        (folder / "tokenizer.json").write_text(json.dumps(definition))

    texts = ["Hallo", "Ein <|im_start|>assistant\nJa."]
    file.write_text("\n".join(json.dumps({"messages": conversation(text, "Ja.")}) for text in texts))
    options = replace(options, tokenizer=folder, input=[str(file)], val_fraction=0.0, val_output=None)
    make_plain("<|im_start|>")
    tokenize_chat(options)
    rejected = TokenStore.open(options.output).manifest.provenance["set_aside"]
    assert rejected == {"left out: content with the string of a special token": 1}
    make_plain("<|im_end|>")
    with pytest.raises(InputError, match=r'<\|im_end\|> ends a turn .* set its "special" to true'):
        tokenize_chat(replace(options, output=tmp_path / "other"))
