"""Frozen parameters and rows, against a plain loop in which the trained rows are parameters of their own."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lit_gpt.checkpoint.folder import folder_name
from lit_gpt.cli import InputError
from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT, parameter_shapes
from pretrain import parallel
from pretrain.checkpoint.snapshot import model_tensors, optimizer_tensors
from pretrain.launch.memory import checkpoint_bytes, estimate_memory
from pretrain.optim import build_optimizer, guarded_step
from pretrain.options import TrainOptions
from pretrain.trainable import frozen_rows, partly_frozen, zero_frozen
from scripts.faults.ports import free_ports
from tests.pretrain.ranks import enter_job, run_ranks, train_on_ranks
from tests.pretrain.running import assert_same_checkpoint, checkpoint_tensors, losses, open_run

CONFIG = ModelConfig.load("tiny_100K", vocab_size=97)  # rows that 2 and 3 ranks share unevenly
TRAINABLE = ["transformer.wte[60:]", "lm_head[:10]", "lm_head.weight[40:90]", "transformer.h.1.*", "*.qkv"]
# Of partly trained matrices the trained rows.
ROWS = {"transformer.wte.weight": [*range(60, 97)], "lm_head.weight": [*range(10), *range(40, 90)]}
STEPS, N_ROWS, LENGTH = 20, 6, 16


def _trained_names(patterns: list[str]) -> set[str]:
    return set(parameter_shapes(CONFIG)) - set(frozen_rows(patterns, CONFIG))


def test_a_pattern_stands_for_what_is_below_it():
    names = set(parameter_shapes(CONFIG))
    of_1 = {name for name in names if name.startswith("transformer.h.1.")}
    assert _trained_names(["transformer.h.1"]) == _trained_names(["transformer.h.1.*"]) == of_1
    assert _trained_names(["lm_head", "*.mlp"]) == {n for n in names if ".mlp." in n} | {"lm_head.weight"}
    assert _trained_names(["transformer.h.[01].norm_1"]) == {n for n in names if ".norm_1" in n}
    assert frozen_rows(None, CONFIG) == frozen_rows([], CONFIG) == frozen_rows(["*"], CONFIG) == {}
    assert frozen_rows(["transformer", "lm_head[:50]", "lm_head[40:]"], CONFIG) == {}
    frozen = frozen_rows(TRAINABLE, CONFIG)
    assert frozen["transformer.wte.weight"] == ((0, 60),)
    assert frozen["lm_head.weight"] == ((10, 40), (90, 97))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("transformer.h.*.mpl", r"no parameter has such a name; did you mean transformer\.h\.\*\.mlp\?"),
        (
            "x",
            r"no parameter has such a name; known: transformer, .*transformer\.h\.\*\.mlp\.fc_1, .*lm_head",
        ),
        ("transformer.h.2", "no parameter"),
        ("lm_head[90:98]", r"lm_head\.weight has the rows \[0:97\]"),
        ("lm_head[97:]", r"has the rows \[0:97\]"),
        ("transformer.ln_f[3:]", "is no matrix"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, train_store_dir, pattern, message):
    with pytest.raises(InputError, match=message):
        frozen_rows([pattern], CONFIG)


def test_a_tied_head_is_refused():
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    for pattern in ("lm_head", "lm_head.weight", "lm_*[5:]"):
        with pytest.raises(
            InputError, match=r"its embedding \(tie_embeddings\), one matrix: give transformer.wte"
        ):
            frozen_rows([pattern], tied)
    assert "transformer.wte.weight" not in frozen_rows(["transformer.wte"], tied)


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a step over all ranks."""
    ids = torch.randint(97, (2, N_ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    return ids[0], ids[1]


def _loss(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(LENGTH).expand_as(ids)
    bounds = torch.arange(len(ids) + 1, dtype=torch.int32) * LENGTH
    return model(ids, positions, Documents(bounds, LENGTH), labels)


def plain_loop() -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after all steps and the norm of each: trained rows are parameters, the others constants."""
    model = GPT(CONFIG)
    model.init_weights(TrainOptions().seed)
    fixed = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    rows = {name: nn.Parameter(fixed[name][ids]) for name, ids in ROWS.items()}
    whole = {
        name: nn.Parameter(tensor.clone())
        for name, tensor in fixed.items()
        if name.startswith("transformer.h.1.") or name.endswith("qkv.weight")
    }
    groups = [
        {"params": [p for p in whole.values() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [*(p for p in whole.values() if p.dim() < 2), *rows.values()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    norms = []

    def weights() -> dict[str, torch.Tensor]:
        put = {name: fixed[name].index_copy(0, torch.tensor(ROWS[name]), new) for name, new in rows.items()}
        return fixed | whole | put

    for step in range(STEPS):
        positions = torch.arange(LENGTH).expand(N_ROWS, LENGTH)
        bounds = torch.arange(N_ROWS + 1, dtype=torch.int32) * LENGTH
        ids, labels = _batch(step)
        arguments = (ids, positions, Documents(bounds, LENGTH), labels)
        loss = torch.func.functional_call(model, weights(), arguments) / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_([*whole.values(), *rows.values()], 0.5).item())
        optimizer.step()
    return {name: tensor.detach() for name, tensor in weights().items()}, norms


def _train(rank: int, world_size: int, port: int, file: Path, flags: dict[str, str]) -> None:
    """One rank of our side, from the same weights on the same batches."""
    torch.set_num_threads(1)
    if world_size > 1:
        enter_job(rank, world_size, port)
    options = TrainOptions(devices=world_size, accelerator="cpu", trainable=TRAINABLE, **flags)
    fabric = parallel.launch(options)
    model = parallel.build_model(fabric, options, CONFIG)
    frozen = frozen_rows(TRAINABLE, CONFIG)
    partly = partly_frozen(model, frozen)
    optimizer = build_optimizer(model, 1e-2, 0.1, 0.9, 0.95, undecayed=[p for p, _ in partly])
    initial = {name: _whole(tensor).clone() for name, tensor in model_tensors(model).items()}
    expected, norms = torch.load(file, weights_only=True)
    for step in range(STEPS):
        ids, labels = (part.chunk(world_size)[rank] for part in _batch(step))
        loss = _loss(model, ids, labels)
        fabric.backward(loss * (world_size / (N_ROWS * LENGTH)))
        zero_frozen(partly)
        norm, _ = guarded_step(optimizer, 1e-2, 0.5, torch.tensor(1.0))
        optimizer.zero_grad(set_to_none=True)
        assert norm.item() == pytest.approx(norms[step], rel=1e-4)
    for name, tensor in model_tensors(model).items():
        ours = _whole(tensor)
        torch.testing.assert_close(ours, expected[name], rtol=1e-4, atol=2e-5)
        for first, last in frozen.get(name, ()):
            assert torch.equal(ours[first:last], initial[name][first:last]), name
    updated = {name.split(".", 1)[1].rpartition(".")[0] for name in optimizer_tensors(model, optimizer)[0]}
    assert updated == _trained_names(TRAINABLE) | set(ROWS)
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    file = tmp_path_factory.mktemp("plain") / "expected.pt"
    torch.save(plain_loop(), file)
    return file


@pytest.mark.parametrize("flags", [{}, {"activation_checkpointing": "full"}], ids=["plain", "recomputed"])
def test_frozen_rows_stay_and_the_others_train_as_parameters_of_their_own(plain, flags):
    threads = torch.get_num_threads()
    try:
        _train(0, 1, 0, plain, flags)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "flags"),
    [(2, {"activation_checkpointing": "full"}), (3, {}), (2, {"sharding_strategy": "NO_SHARD"})],
)
def test_frozen_rows_stay_on_any_number_of_ranks(plain, world_size, flags):
    run_ranks(_train, world_size, world_size, *free_ports(1), plain, flags)


RUN = {"max_steps": 20, "save_step_interval": 10, "trainable": ["transformer.wte[70:]", "transformer.h.1"]}


def _assert_resumed_equals_straight(run: Path, straight: Path) -> None:
    assert losses(run) == losses(straight)
    assert_same_checkpoint(run, straight, 20)
    first, last = checkpoint_tensors(straight, 10), checkpoint_tensors(straight, 20)
    moments = {name.removeprefix("optim/state.").rpartition(".")[0] for name in last if "optim/" in name}
    assert moments == {n for n in parameter_shapes(CONFIG) if ".h.1." in n} | {"transformer.wte.weight"}
    for name in parameter_shapes(CONFIG):
        before, after = first[f"model/{name}"], last[f"model/{name}"]
        if name == "transformer.wte.weight":
            assert torch.equal(before[:70], after[:70])
            before, after = before[70:], after[70:]
        assert torch.equal(before, after) == (name not in moments)


@pytest.mark.slow
def test_a_frozen_run_is_resumed_bitwise_and_only_as_it_was(tmp_path, train_store_dir, capsys):
    straight, run = tmp_path / "straight", tmp_path / "run"
    open_run(straight, train_store_dir, **RUN).fit()
    assert "trainable: " in capsys.readouterr().out
    shutil.copytree(straight, run)
    shutil.rmtree(run / folder_name(20))
    resumed = {"resume": str(straight / folder_name(10))}
    for changed in (None, ["transformer.wte[71:]", "transformer.h.1"]):
        with pytest.raises(
            InputError, match=r"a changed trainable needs a fresh optimizer: start a stage, or"
        ):
            open_run(tmp_path / f"{changed}", train_store_dir, **RUN | resumed | {"trainable": changed})
    same = ["transformer.h.1.*", "transformer.wte.weight[70:]"]
    open_run(run, train_store_dir, resume="auto", **RUN | {"trainable": same}).fit()
    _assert_resumed_equals_straight(run, straight)


@pytest.mark.slow
def test_a_frozen_run_is_resumed_bitwise_on_two_ranks(tmp_path, train_store_dir):
    straight, run = tmp_path / "straight", tmp_path / "run"
    train_on_ranks(2, straight, train_store_dir, **RUN)
    shutil.copytree(straight, run)
    shutil.rmtree(run / folder_name(20))
    train_on_ranks(2, run, train_store_dir, resume="auto", **RUN)
    _assert_resumed_equals_straight(run, straight)


def test_a_mistake_is_found_before_a_model_is_built(tmp_path, train_store_dir, monkeypatch):
    monkeypatch.setattr(parallel, "launch", lambda options: pytest.fail("processes are connected"))
    with pytest.raises(InputError, match="--trainable lm_haed: no parameter"):
        open_run(tmp_path, train_store_dir, trainable=["lm_haed"])


def test_only_what_is_trained_has_gradients_and_moments():
    head = CONFIG.vocab_rows * CONFIG.n_embd
    options = TrainOptions(trainable=["lm_head[:3]"])
    assert estimate_memory(options, CONFIG).state == 4 * (CONFIG.n_parameters + 3 * head)
    assert checkpoint_bytes(options, CONFIG) == 4 * (CONFIG.n_parameters + 2 * head)
