"""A conversation keeps to the model's positions, and to the order of turns that templates want."""

import pytest
from transformers import AutoTokenizer

from lit_gpt.cli import InputError
from lit_gpt.hf.conversation import Conversation

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' and loop.previtem and loop.previtem.role == 'user' %}"
    "{{ raise_exception('two users\nin a row') }}{% endif %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
)


@pytest.fixture
def tokenizer(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_the_oldest_exchanges_make_room_for_the_answer(tokenizer):
    """The system's turn stays, questions leave with their answers."""
    conversation, said = Conversation(tokenizer, 20, "!"), []
    for number in range(6):
        ids, left_out = conversation.ask(str(number), room=8)
        assert len(ids) + 8 <= 20
        said.append((tokenizer.decode(ids), left_out))
        conversation.answer(str(number))
    lengths = [len(tokenizer.encode(f"s!{'u0a0' * n}u0", add_special_tokens=False)) for n in range(6)]
    kept = max(n for n, length in enumerate(lengths) if length <= 12)
    assert 0 < kept < 5
    for number, (text, left_out) in enumerate(said):
        first = max(0, number - kept)
        assert text == "s!" + "".join(f"u{n}a{n}" for n in range(first, number)) + f"u{number}"
        assert left_out == (number > kept)


def test_a_turn_without_room_for_an_answer_is_refused_and_forgotten(tokenizer):
    conversation = Conversation(tokenizer, 20, None)
    with pytest.raises(InputError, match=r"this turn takes \d+ tokens; the model has 20 positions"):
        conversation.ask("wort " * 20, room=8)
    ids, left_out = conversation.ask("x" * 2, room=30)  # an answer may be cut, a question not
    assert (tokenizer.decode(ids), left_out) == ("uxx", 0)


def test_what_would_be_a_control_token_is_refused(tokenizer):
    """Special ones, and of the others those that the template writes; else text is text."""
    tokenizer.add_tokens(["<|turn|>", "<|tool|>"])
    tokenizer.chat_template = TEMPLATE + "<|turn|>"
    conversation = Conversation(tokenizer, 200, None)
    for text in ("a</s>b", "x <|turn|>"):
        with pytest.raises(InputError, match="a control token of the model: leave it out"):
            conversation.ask(text, room=1)
        with pytest.raises(InputError, match="a control token"):
            Conversation(tokenizer, 200, text)
    ids, _ = conversation.ask("<|tool|> <turn> < /s>", room=1)
    assert tokenizer.decode(ids) == "u<|tool|> <turn> < /s><|turn|>"


def test_words_of_the_program_that_a_template_is_are_ordinary(tokenizer):
    """Added tokens that are no special ones, and written by no template."""
    tokenizer.add_tokens(["in", "content", "  "])
    conversation = Conversation(tokenizer, 200, None)
    ids, _ = conversation.ask("Das Buch liegt  in der Kiste.", room=1)
    assert tokenizer.decode(ids) == "uDas Buch liegt  in der Kiste."


def test_a_template_that_refuses_turns_is_quoted_in_one_line(tokenizer):
    conversation = Conversation(tokenizer, 20, None)
    conversation.ask("a", room=1)
    with pytest.raises(InputError, match=r"^the chat template refuses these turns: two users in a row$"):
        conversation.ask("b", room=1)
