"""Against the safetensors package and torch's own distributed checkpoints as oracles."""

import json
import os
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from lit_gpt.checkpoint.tensor_files import DTYPES, TensorReader, TensorSpec, write_tensors
from lit_gpt.cli import InputError

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bit pattern, NaNs included; booleans as they must be."""
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(shape)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and left.flatten().view(torch.uint8).equal(right.flatten().view(torch.uint8))


def _write(path: Path, tensors: dict[str, torch.Tensor], first_row: int | None = None):
    specs = {
        TensorSpec(name, tensor.dtype, tuple(tensor.shape), first_row): tensor
        for name, tensor in tensors.items()
    }
    return write_tensors(path, specs, specs.__getitem__)


def reader_of(folder: Path) -> TensorReader:
    return TensorReader(folder, [path.name for path in folder.glob("*.safetensors")])


@given(st.lists(st.tuples(SHAPES, st.sampled_from(list(DTYPES.values()))), max_size=6))
def test_files_are_what_safetensors_reads(tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("files")
    tensors = {f"t{n}": _tensor(shape, dtype, n) for n, (shape, dtype) in enumerate(kinds)}
    entry = _write(folder / "a.safetensors", tensors)

    assert entry.bytes == (folder / "a.safetensors").stat().st_size
    assert entry.xxh3_128 == xxhash.xxh3_128_hexdigest((folder / "a.safetensors").read_bytes())
    reader, oracle = reader_of(folder), load_file(folder / "a.safetensors")
    assert set(reader.keys()) == oracle.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert _same_bits(reader.read(name), tensor)
        assert _same_bits(oracle[name], tensor)
        assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), tensor.dtype)


@st.composite
def _cuts(draw):
    """A shape, where its rows are cut, and a range of rows to read."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    cuts = sorted({0, shape[0], *draw(st.lists(st.integers(0, shape[0]), max_size=3))})
    return tuple(shape), cuts, sorted(draw(st.tuples(*[st.integers(0, shape[0])] * 2)))


@given(_cuts())
def test_rows_in_many_files_make_the_tensor_for_us_and_for_torch(tmp_path_factory, drawn):
    shape, cuts, (begin, end) = drawn
    complete = _tensor(shape, torch.int32, 1)
    folder = tmp_path_factory.mktemp("rows")
    for first, last in pairwise(cuts):
        _write(folder / f"{9 - first}.safetensors", {"w": complete[first:last]}, first)

    reader = reader_of(folder)
    assert torch.equal(reader.read("w"), complete)
    assert torch.equal(reader.read_rows("w", begin, end - begin), complete[begin:end])
    by_torch = {"w": torch.zeros(shape, dtype=torch.int32)}
    dcp.load(by_torch, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(by_torch["w"], complete)


def test_a_tensor_that_is_sharded_by_columns_is_refused(tmp_path):
    for number in range(2):
        path = tmp_path / f"{number}.safetensors"
        sharding = json.dumps({"w": {"saved_offsets": [0, 2 * number]}})
        save_file({"w": torch.ones(2, 2)}, path, {"DCP_SHARDING_INFO": sharding, "DCP_VERSION": "1.0"})
    with pytest.raises(InputError, match=r"1\.safetensors.*another dimension than its rows"):
        reader_of(tmp_path)


def test_what_torch_saves_is_read(tmp_path):
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}
    writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
    reader = reader_of(tmp_path)
    assert all(_same_bits(reader.read(name), tensor) for name, tensor in tensors.items())


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    alive: list[weakref.ref] = []

    def body(spec: TensorSpec) -> torch.Tensor:
        assert not any(reference() is not None for reference in alive), "the one before is still held"
        tensor = torch.full(spec.shape, float(spec.name[1:]))
        alive.append(weakref.ref(tensor))
        return tensor

    write_tensors(
        tmp_path / "a.safetensors", [TensorSpec(f"t{n}", torch.float32, (100,)) for n in range(5)], body
    )
    assert load_file(tmp_path / "a.safetensors")["t3"].eq(3).all()


def test_missing_rows_and_a_foreign_file_are_refused(tmp_path):
    for number in range(3):
        _write(tmp_path / f"{number}.safetensors", {"w": torch.ones(2, 2)}, 2 * number)
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(InputError, match="w has gaps"):
        reader_of(tmp_path)

    (tmp_path / "0.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match=r"0\.safetensors: not a file of tensors"):
        reader_of(tmp_path)


def test_two_dtypes_for_one_tensor_are_refused(tmp_path):
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        save_file({"w": torch.ones(2, dtype=dtype)}, tmp_path / f"{number}.safetensors")
    with pytest.raises(InputError, match="bfloat16, elsewhere"):
        reader_of(tmp_path)


@pytest.mark.parametrize("harm", ["cut short", "cannot be read"])
def test_a_file_that_is_harmed_while_it_is_in_use_is_named(tmp_path, harm):
    path = tmp_path / "a.safetensors"
    _write(path, {"w": torch.ones(64, 64)})
    reader = reader_of(tmp_path)
    if harm == "cut short":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    assert harm == "cannot be read" or reader.read_rows("w", 0, 63).eq(1).all()
    with pytest.raises(InputError, match=rf"a\.safetensors .*{harm}"):
        reader.read("w")


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path):
    with pytest.raises(ValueError, match="announced"):
        write_tensors(
            tmp_path / "a.safetensors", [TensorSpec("w", torch.float32, (2,))], lambda spec: torch.ones(3)
        )


def test_only_the_files_that_are_named_are_opened(tmp_path):
    _write(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    _write(tmp_path / "b.safetensors", {"v": torch.ones(2)})
    os.mkfifo(tmp_path / "c.safetensors")
    assert TensorReader(tmp_path, ["a.safetensors"]).keys() == ["w"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    _write(path.with_name("target"), {"w": torch.ones(2)})
    path.symlink_to("target")


def _endless_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write((6 << 30).to_bytes(8, "little"))
        file.truncate(7 << 30)


@pytest.mark.parametrize("make", [_fifo, _link, _endless_header, Path.mkdir])
def test_what_is_no_file_of_tensors_neither_hangs_nor_takes_memory(tmp_path, make):
    make(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors: not a file of tensors"):
        TensorReader(tmp_path, ["a.safetensors"])
