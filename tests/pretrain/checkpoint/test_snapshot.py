"""The host memory of checkpoints: allocated before the first save, page-locked where CUDA allows it."""

import gc
from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoint import snapshot
from pretrain.checkpoint.collective import Ranks
from pretrain.checkpoint.snapshot import Staging
from tests.pretrain.saving import Small, optimizer_of, train

ALONE = Ranks(None, 0, 1)


@pytest.mark.parametrize("full", [False, True])
def test_the_first_save_allocates_nothing(full):
    model = Small().fill(0)
    optimizer = optimizer_of(model)
    staging = Staging(ALONE, full)
    staging.reserve(model, optimizer)
    reserved = staging._buffer
    train(model, optimizer, range(1, 3))
    taken = staging.take(model, optimizer)
    assert staging._buffer is reserved
    needed = sum(-(-spec.n_bytes // 8) * 8 for spec in [*taken.model, *taken.optim])
    assert needed == len(reserved)


@pytest.fixture
def cuda_runtime(monkeypatch):
    """Stands in for CUDA's: `result` is what registering returns, `locked` what it holds, by address."""
    runtime = SimpleNamespace(result=0, locked={}, cleared=0)

    def register(address, n_bytes, flags):
        if runtime.result == 0:
            assert address not in runtime.locked
            runtime.locked[address] = n_bytes
        return runtime.result

    def unregister(address):
        del runtime.locked[address]
        return 0

    def clear():
        runtime.cleared += 1

    runtime.cudaHostRegister, runtime.cudaHostUnregister = register, unregister
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(snapshot, "_clear_cuda_error", clear)
    return runtime


def test_memory_is_page_locked_exactly_and_given_back(cuda_runtime, capsys):
    staging = Staging(ALONE, full=False)
    for n_bytes in (1000, 500, 3000):
        staging._grow(n_bytes, page_lock=True)
    assert list(cuda_runtime.locked.values()) == [3000]
    del staging
    gc.collect()
    assert not cuda_runtime.locked
    assert capsys.readouterr().err == ""


def test_without_page_locking_saving_goes_on_and_one_line_says_so(cuda_runtime, capsys):
    cuda_runtime.result = 2  # out of memory, as where `ulimit -l` is low
    staging = Staging(ALONE, full=False)
    staging._grow(5_000_000, page_lock=True)
    staging._buffer.fill_(1)
    assert cuda_runtime.cleared == 1  # or the next kernel launch would raise it
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank 0: 0.0 GB of memory for checkpoints could not be page-locked" in line
    assert "cudaError: 2" in line
