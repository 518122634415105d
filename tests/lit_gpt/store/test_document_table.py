"""Documents are found by number and by id, whatever the ids are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.store.document_table import (
    ROW_GROUP,
    DocumentColumns,
    DocumentInfo,
    find_id,
    read_documents,
    write_documents,
)

ids = st.one_of(
    st.text(max_size=8), st.sampled_from(["../../etc/passwd", "a\nb", "'\"; --", "ü" * 10_000, "0"])
)


@settings(max_examples=50)
@given(st.lists(ids, min_size=1, max_size=30))
def test_every_id_finds_all_its_documents(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    base = tmp_path_factory.mktemp("table") / "shard"
    lines = list(range(len(names)))
    write_documents(base, [DocumentColumns(names, ["f"] * len(names), lines, lines)])
    for name in {*names, "not there"}:
        expected = [number for number, each in enumerate(names) if each == name]
        assert find_id(base.with_suffix(".ids"), name).tolist() == expected
    infos = read_documents(base.with_suffix(".docs.parquet"), np.arange(len(names))[::-1])
    assert infos == [DocumentInfo(names[line], "f", line, line) for line in reversed(lines)]


def test_lookups_over_row_groups(tmp_path: Path):
    count = 2 * ROW_GROUP + 5

    def columns(numbers: range) -> DocumentColumns:
        return DocumentColumns([f"d{number}" for number in numbers], ["f"] * len(numbers), numbers, numbers)

    write_documents(tmp_path / "whole", [columns(range(count))])
    write_documents(tmp_path / "parts", [columns(range(ROW_GROUP)), columns(range(ROW_GROUP, count))])
    wanted = np.array([count - 1, 0, ROW_GROUP, ROW_GROUP - 1, ROW_GROUP, 2 * ROW_GROUP])
    for name in ("whole", "parts"):
        infos = read_documents(tmp_path / f"{name}.docs.parquet", wanted)
        assert [info.id for info in infos] == [f"d{number}" for number in wanted]
        assert find_id(tmp_path / f"{name}.ids", f"d{count - 2}").tolist() == [count - 2]
