"""scripts/chat_answers.py names what it cannot use; tests/test_chat_trial.py has what it counts."""

import json

import pytest

from lit_gpt.cli import InputError
from scripts.chat_answers import Options, main


def test_what_is_no_chat_model_or_no_conversation_is_named(tmp_path, converted_run):
    base = converted_run / "iter-00000040"
    with pytest.raises(InputError, match="is no Hugging Face folder"):
        main(Options([tmp_path], tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="has no chat template, or no token that ends turns"):
        main(Options([base], tmp_path / "none.jsonl"))


@pytest.mark.parametrize("line", ["", "[]", "{}", "not JSON", json.dumps({"messages": [{"role": "user"}]})])
def test_unusable_conversations(line, tmp_path, hf_folder):
    (hf_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (hf_folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "questions.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"^--conversations .*questions\.jsonl"):
        main(Options([hf_folder], tmp_path / "questions.jsonl"))
