import copy
import math

import pytest
import torch

from pretrain.optim import build_optimizer, guarded_step


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4))


def give_gradients(model, scale=1.0):
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale


@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 1000.0])
def test_a_step_equals_plain_clipping_and_plain_adamw(grad_clip):
    model = make_model()
    reference = copy.deepcopy(model)
    optimizer = build_optimizer(model, 1e-2, 0.1, 0.9, 0.95)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for step in range(5):
        rate = 1e-2 / (step + 1)
        give_gradients(model, scale=step + 1)
        give_gradients(reference, scale=step + 1)
        norm, skipped = guarded_step(optimizer, rate, grad_clip, torch.tensor(1.0))
        expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), grad_clip or math.inf)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
        assert skipped.item() == 0.0
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("poison", ["gradient_nan", "gradient_inf", "loss_nan", "loss_inf"])
def test_a_step_that_is_not_finite_changes_nothing(poison):
    model = make_model()
    optimizer = build_optimizer(model, 1e-2, 0.1, 0.9, 0.95)
    give_gradients(model)
    guarded_step(optimizer, 1e-2, 1.0, torch.tensor(1.0))
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])

    give_gradients(model)
    value = float(poison.split("_")[1])
    loss = torch.tensor(value if poison.startswith("loss") else 1.0)
    if poison.startswith("gradient"):
        next(model.parameters()).grad[0, 0] = value
    _, skipped = guarded_step(optimizer, 1e-2, 1.0, loss)

    assert skipped.item() == 1.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for number, before in state.items():
        after = optimizer.state_dict()["state"][number]
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_only_matrices_are_decayed():
    model = make_model()
    decayed, plain = build_optimizer(model, 1e-2, 0.1, 0.9, 0.95).param_groups
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
