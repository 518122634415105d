"""What was decoded wrongly comes back; what a German, Polish or Turkish writer wrote stays."""

from itertools import islice

import ftfy  # noqa: F401  its codec decodes what Windows-1252 does not assign, as browsers do
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.passages import PASSAGES, documents, load_registers
from data_prep.text.mojibake import repair_mojibake

PASSAGES_OF_ALL_KINDS = [text for _, text in islice(documents(2, load_registers(PASSAGES)), 150)]
READ_AS = ["sloppy-windows-1252", "latin-1"]
WORD = st.from_regex(
    "([A-ZÄÖÜ]?[a-zäöüß]{1,8}|[A-ZÄÖÜ]{1,6}|café|Señor|à|[0-9]{1,3} ?€|§ 5|20°)", fullmatch=True
)
BEFORE, AFTER = st.sampled_from(["", *"„»‚("]), st.sampled_from(["", *"“«‘…–.)"])
GERMAN = st.lists(st.tuples(BEFORE, WORD, AFTER).map("".join), min_size=1)
GERMAN = GERMAN.map(lambda words: " ".join(["für", *words]))


@pytest.mark.parametrize("encoding", READ_AS)
def test_passages_come_back_and_stay(encoding):
    for text in PASSAGES_OF_ALL_KINDS:
        assert repair_mojibake(text) is text
        broken = text
        for _ in range(3):
            broken = broken.encode().decode(encoding)
            assert repair_mojibake(broken) == text


@settings(max_examples=150, deadline=None)
@given(GERMAN, st.sampled_from(READ_AS), st.integers(1, 2))
def test_any_german_comes_back_and_stays(text, encoding, times):
    assert repair_mojibake(text) is text
    broken = text
    for _ in range(times):
        broken = broken.encode().decode(encoding)
    assert repair_mojibake(broken) == text


@pytest.mark.parametrize(
    "text",
    [
        "»Änderung« und »Übung, die", "»Überlauf", "Die Flächen ÄÖÜ§ und Ü² und Ä°",
        "Das „Ä“, das „Ö“, „Ü…“", "5 Å³, 3 Å²",
        "FPÖ“, „SPÖ–ÖVP“ ® ™", "daß» Maß— groß…", "na „Ä…äh“, sagte er", "Größe ≠ Menge ± 3 µm ² ³ ½ ‰ †",
        "Zażółć gęślą jaźń. ŁÓDŹ „ŚLĄSK” ĄĘ…", "L’été à la plage : « Ça » – CHÂTEAU, « Â »",
        "São Paulo, NÃO “MAÇÔ",
        "İstanbul’da güneşli. HÂLÂ, “HÂLÂ” ĞÜŞİÖÇ", "Tiếng Việt: ĐƯỜNG PHỐ, “ĐÔ, Ấn Độ",
        "Åsa och Örjan på Åland, Ålesund",
        "PÅ “ÅR”, Å–Ä, Ða, ÎLE ; « Ã\xa0», « Â\xa0», HÂLÂ var, ÑANDÚ, Îles, ÞAÐ “, 5 Å ± 2, Ï und Î",
        'if (a <= b) { s = "ä"; } // Ñandú', "Ein UTF-8-Fehler zeigt Ã¤ statt ä, â€“ statt –.",
        "┌─┐│»schnell«│└─┘", "œ∑´®†¥¨ˆøπ",
    ],
)  # fmt: skip
def test_sound_text_stays(text):
    assert repair_mojibake(text) is text


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("schÃ¶n und schön, StraÃŸe und Straße", "schön und schön, Straße und Straße"),
        ("Die MÃ¼ller sagte: â€žHalloâ€œ\nsagte »Ä", "Die Müller sagte: „Hallo“\nsagte »Ä"),
        ("fÃƒÂ¼r Ã¢â‚¬Å¾unsÃ¢â‚¬Å“", "für „uns“"),
        ("10 StÃ¼ck Ã  5 â‚¬", "10 Stück à 5 €"),
        ("gehtÂ’s um 5Â°C, Â§ 3, Â»ZitatÂ«", "geht’s um 5°C, § 3, »Zitat«"),
        ("SPÃ– und Ã„mter", "SPÖ und Ämter"),
        ("er\x92s \x84so\x93 \x96 na\x85", "er’s „so“ – na…"),
        ("uÌˆber", "u\u0308ber"),
        (
            "500Â\xa0g, 10Â\xa0%, 1Â\xa0000Â\xa0Euro",
            "500\xa0g, 10\xa0%, 1\xa0000\xa0Euro",
        ),
        ("BMWÂ\xa0X5", "BMW\xa0X5"),
        ("Ã\xa0 la carte", "à la carte"),
        ("3Ã—4 und 3 Ã— täglich", "3×4 und 3 × täglich"),
        ("Å½iÅ¾ek", "Žižek"),
        ("WaÅ‚Ä™sa", "Wałęsa"),
        ("ErdoÄŸan", "Erdoğan"),
        ("Å›wiat", "świat"),
        ("Å“uvre", "œuvre"),
        ("ÄŒapek", "Čapek"),
        ("Ã…land", "Åland"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("Î‘Î¸Î®Î½Î±", "Αθήνα"),
        ("Ja.Â Nein", "Ja.\xa0Nein"),
        ("ï»¿Der Tag", "Der Tag"),
        ("Ã¯Â»Â¿fÃƒÂ¼r", "für"),
        ("LÃ³dÅº mÃ³wiÄ… Å¼e", "Lódź mówią że"),
        ("ðŸ˜€ â€¢ â†’", "😀 • →"),
    ],
)
def test_repaired(broken, text):
    assert repair_mojibake(broken) == text


def test_a_line_as_long_as_may_be_is_repaired_in_one_go():
    assert repair_mojibake("fÃ¼r â€žunsâ€œ und " * (1 << 15)) == "für „uns“ und " * (1 << 15)


@pytest.mark.timeout(20)
def test_a_text_made_to_need_a_round_for_each_character_is_given_up():
    repair_mojibake("Ã" + "\x83" * 200_000)
