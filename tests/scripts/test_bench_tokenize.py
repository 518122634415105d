"""The benchmark runs and names what it measures."""

from pathlib import Path

import pytest

from lit_gpt.cli import InputError
from scripts.bench_tokenize import Options, main


def test_every_measurement_is_printed(
    corpus_files: list[Path], tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
):
    main(Options([str(file) for file in corpus_files], tokenizer_dir, repeats=1, workers=1))
    lines = capsys.readouterr().out.splitlines()
    names = ["plain ", "word cache, cold ", "word cache, warmed ", "pipeline, "]
    assert len(lines) == 4
    assert all(line.startswith(name) for line, name in zip(lines, names, strict=True))
    with pytest.raises(InputError, match="at least two"):
        main(Options([str(corpus_files[0])], tokenizer_dir))
