"""A folder keeps its settings, and a refusal names what differs."""

import pytest

from data_prep.stages.settings import check_settings
from lit_gpt.cli import InputError


def test_a_folder_keeps_its_settings(tmp_path):
    check_settings(tmp_path / "a", {"limit": 1, "files": [tmp_path / "x"]})
    check_settings(tmp_path / "a", {"limit": 1, "files": [tmp_path / "x"]})
    with pytest.raises(InputError, match=r"other settings \(--limit 1 -> 2\)"):
        check_settings(tmp_path / "a", {"limit": 2, "files": [tmp_path / "x"]})
    check_settings(tmp_path / "a", {"limit": 2, "files": [tmp_path / "x"]}, ["limit"])
    (tmp_path / "file").touch()
    for inside in ("", "below"):
        with pytest.raises(InputError, match=r"cannot be written: .*; give another --output"):
            check_settings(tmp_path / "file" / inside, {})


def test_other_limits_are_named_by_their_flags_and_earlier_revisions_as_such(tmp_path):
    limits = {f"max_{n:02}": n for n in range(20)}
    check_settings(tmp_path, {"limits": limits, "nfc": True})
    before = (tmp_path / "settings.json").read_bytes()
    for others, said in (
        ({"limits": limits | {"max_03": 7}, "nfc": True}, r"\(--max_03 3 -> 7\)"),
        ({"limits": limits | {"max_03": None}}, r"\(--max_03 3 -> null, --nfc true -> false\)"),
        ({"limits": dict.fromkeys(limits, "x" * 999), "nfc": True}, r"\(--max_00 0 -> .*, and 12 more\)"),
        (
            {"limits": limits | {"refrains": True}, "nfc": True},
            "by an earlier version of this code, without --refrains: finish it with that version, or give",
        ),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_settings(tmp_path, others)
        assert len(str(error.value)) < 1000
    for unset in (None, [], {}):
        check_settings(tmp_path, {"limits": limits | {"of_a_later_revision": unset}, "nfc": True})
    assert (tmp_path / "settings.json").read_bytes() == before
