"""The sample corpus: the same for the same seed, no document twice, every rule known and used."""

import json
import re
from itertools import islice

import pytest

from data_prep.passages import (
    BETWEEN_FORMS,
    PASSAGES,
    SHARED,
    SLOT,
    documents,
    load_conversations,
    load_registers,
)
from data_prep.sample_corpus import Options, main
from lit_gpt.cli import InputError


def test_the_seed_decides_and_no_document_comes_twice():
    first = list(islice(documents(5, load_registers(PASSAGES)), 3000))
    assert first == list(islice(documents(5, load_registers(PASSAGES)), 3000))
    assert first != list(islice(documents(6, load_registers(PASSAGES)), 3000))
    assert len({text for _, text in first}) == 3000
    assert not any(re.search(r"[{}]|  |^\s|\s$", text) for _, text in first)


@pytest.mark.parametrize(
    "register", load_registers(PASSAGES) + load_conversations(), ids=lambda register: register.name
)
def test_slots_and_rules_fit_together(register):
    texts = register.templates + [line for lines in register.rules.values() for line in lines]
    slots = [slot for text in texts for slot in SLOT.finditer(text)]
    assert len(slots) == sum(text.count("{") for text in texts), "every brace belongs to a slot"
    for slot in slots:
        if slot["rule"]:
            forms = {len(line.split(BETWEEN_FORMS)) for line in register.rules[slot["rule"]]}
            assert len(forms) == 1, f"the lines of {slot['rule']} have different numbers of forms"
            assert int(slot["form"] or 1) <= forms.pop()
        else:
            assert int(slot["low"]) < int(slot["high"])


def test_every_rule_is_used():
    registers = load_registers(PASSAGES)
    for register in registers:
        texts = register.templates + [line for lines in register.rules.values() for line in lines]
        used = {slot["rule"] for text in texts for slot in SLOT.finditer(text)}
        own = set(re.findall(r"^\[(\w+)\]$", (PASSAGES / f"{register.name}.txt").read_text(), re.MULTILINE))
        assert own - used == {"text"}, f"{register.name}: rules that nothing uses"
    everything = "".join((PASSAGES / f"{register.name}.txt").read_text() for register in registers)
    shared = re.findall(r"^\[(\w+)\]$", (PASSAGES / f"{SHARED}.txt").read_text(), re.MULTILINE)
    assert [rule for rule in shared if not re.search(rf"{{\^?{rule}\b", everything)] == []


def test_a_tag_is_one_choice_and_choices_differ_before_they_repeat(tmp_path):
    (tmp_path / f"{SHARED}.txt").write_text("[tier]\nder Fuchs / den Fuchs\nder Hase / den Hasen\n")
    (tmp_path / "fabel.txt").write_text("[text]\n{^tier#a} sieht {tier#b.2}; {tier#a} lacht {1..9}.\n")
    texts = {text[:-3] for _, text in islice(documents(1, load_registers(tmp_path)), 12)}
    assert texts == {"Der Fuchs sieht den Hasen; der Fuchs lacht", "Der Hase sieht den Fuchs; der Hase lacht"}


def test_asking_for_more_than_there_is_is_refused(tmp_path):
    (tmp_path / f"{SHARED}.txt").write_text("[wort]\nja\nnein\n")
    (tmp_path / "wort.txt").write_text("[text]\n{wort}\n---\nvielleicht\n")
    with pytest.raises(InputError, match="no more than 3 documents"):
        list(documents(1, load_registers(tmp_path)))


def test_the_file_has_unique_ids_and_the_size_asked_for(tmp_path):
    file = tmp_path / "new" / "corpus.jsonl"
    main(Options(output=file, megabytes=0.2))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    size = sum(len(line["text"].encode()) for line in lines)
    assert 200_000 <= size < 200_000 + len(lines[-1]["text"].encode())
    assert list(file.parent.iterdir()) == [file]
