"""Sample conversations: the same for the same seed, none twice, every rule used, every turn in its place."""

import json
import re
from pathlib import Path

from data_prep.passages import CONVERSATIONS, SLOT
from data_prep.sample_conversations import Options, main


def test_conversations_are_many_and_well_formed(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(Options(output=tmp_path / name, documents=3000, seed=seed))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    records = [json.loads(line) for line in (tmp_path / "a").read_text(encoding="utf-8").splitlines()]
    assert len({record["id"] for record in records}) == 3000
    assert len({json.dumps(record["messages"]) for record in records}) == 3000
    roles = ["".join(turn["role"][0] for turn in record["messages"]) for record in records]
    assert all(re.fullmatch("s?(ua)+", each) for each in roles)
    assert {len(each) for each in roles} >= {2, 3, 4, 5, 6}
    assert 1000 < sum(each.startswith("s") for each in roles) < 2000
    contents = [turn["content"] for record in records for turn in record["messages"]]
    assert not any(re.search(r"[{}]|^\s|\s$|^$|(user|system|assistant): ", content) for content in contents)


def test_every_rule_of_conversations_is_used():
    for file in CONVERSATIONS.glob("*.txt"):
        text = file.read_text(encoding="utf-8")
        used = {slot["rule"] for slot in SLOT.finditer(text)}
        assert set(re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)) - used == {"text"}, file.name
