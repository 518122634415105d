"""extension.json comes back as it was; what is no extension is one line."""

import json

import pytest

from lit_gpt.errors import InputError
from lit_gpt.store.extension import NAME, Extension

EXTENSION = Extension("f" * 64, 100, {100: [5, 6], 101: [5, 6, 7]}, {"<|a|>": 102})


def test_it_comes_back_and_gives_the_bases_ids(tmp_path):
    EXTENSION.write(tmp_path)
    assert Extension.read(tmp_path) == EXTENSION
    assert json.loads((tmp_path / NAME).read_text())["new_tokens"] == {"100": [5, 6], "101": [5, 6, 7]}
    assert EXTENSION.vocab_size == 103
    assert EXTENSION.to_base([1, 101, 100, 102]) == [1, 5, 6, 7, 5, 6, 102]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"first_new_id": 99}, "damaged"),
        ({"new_tokens": {"100": [5, 100]}}, "damaged"),
        ({"new_tokens": {"x": [5]}}, "damaged"),
        ({"new_tokens": []}, "damaged"),
        ({"special_tokens": {"<|a|>": 7}}, "damaged"),
    ],
)
def test_what_is_none_is_one_line(tmp_path, change, says):
    EXTENSION.write(tmp_path)
    values = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(values | change))
    with pytest.raises(InputError, match=says):
        Extension.read(tmp_path)
    with pytest.raises(InputError, match="missing"):
        Extension.read(tmp_path / "nowhere")
