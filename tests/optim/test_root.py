from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from root_dash.optim import ROOT
from tests.optim.training import MUON, copies, give_gradients, mixed, parameters

# torch 2.14 brought "spectral_unclamped".
MUON_RULES = [
    rule
    for rule in ("match_rms_adamw", "original", "spectral_unclamped")
    if f'"{rule}"' in (torch.optim.Muon.__doc__ or "")
]


@pytest.mark.parametrize("rule", MUON_RULES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_can_be_muon(nesterov: bool, rule: Any) -> None:
    """Without clipping, with Muon's set, norm and bfloat16 products, 50 steps equal `torch.optim.Muon`'s."""
    ours = parameters([(64, 64), (64, 96), (96, 64), (64, 64)])
    theirs = copies(ours)
    root = ROOT(ours, nesterov=nesterov, adjust_lr_fn=rule, ns_dtype=torch.bfloat16, **MUON)
    muon = torch.optim.Muon(theirs, nesterov=nesterov, adjust_lr_fn=rule)
    for step in range(50):
        give_gradients(step, ours, theirs)
        root.step()
        muon.step()
    for p, q in zip(ours, theirs, strict=True):
        # Equal to the bit where batched and single products round alike; else by the rounding of 50 updates.
        torch.testing.assert_close(p, q, rtol=0, atol=50 * 1e-3 * 2 * 2**-8)


def test_it_is_close_to_muon_in_float32() -> None:
    """With products in float32 50 steps end within 1 % of the way that `torch.optim.Muon` goes in bfloat16."""
    ours = parameters([(64, 64), (64, 96), (96, 64)])
    theirs, start = copies(ours), copies(ours)
    root, muon = ROOT(ours, **MUON), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw")
    for step in range(50):
        give_gradients(step, ours, theirs)
        root.step()
        muon.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() <= 0.01 * (q - s).norm()


def test_convolution_kernels_are_flattened() -> None:
    """A kernel moves as the matrix of its flattened filters does, also in channels-last order."""
    kernel = parameters([(8, 3, 2, 2)])
    last = [nn.Parameter(kernel[0].detach().to(memory_format=torch.channels_last))]
    matrix = [nn.Parameter(kernel[0].detach().flatten(1).clone())]
    optimizers = [ROOT(kernel), ROOT(last), ROOT(matrix)]
    for step in range(3):
        give_gradients(step, kernel, last)
        assert kernel[0].grad is not None
        matrix[0].grad = kernel[0].grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel[0].flatten(1), matrix[0])
    torch.testing.assert_close(last[0].detach(), kernel[0].detach(), check_stride=False)


def test_a_batch_moves_as_its_members_do_alone() -> None:
    """Parameters of one shape are orthogonalized together without affecting each other."""
    together = parameters([(12, 20)] * 3)
    alone = copies(together)
    optimizers = [ROOT(together), *(ROOT([p]) for p in alone)]
    for step in range(3):
        give_gradients(step, together, alone)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, alone)


def test_a_callable_scales_the_learning_rate() -> None:
    """`adjust_lr_fn` may be a function of the matrix' rows and columns."""
    ours, theirs = parameters(), parameters()
    first = ROOT(ours, adjust_lr_fn=lambda shape: 0.2 * max(shape) ** 0.5)
    second = ROOT(theirs)
    give_gradients(0, ours, theirs)
    first.step()
    second.step()
    assert all(map(torch.equal, ours, theirs))


def test_a_tensor_learning_rate_equals_a_number() -> None:
    """Both algorithms take the learning rate as a tensor of one element."""
    ours, ours_groups = mixed()
    theirs, theirs_groups = mixed()
    for groups, lr in ((ours_groups, torch.tensor([0.01])), (theirs_groups, 0.01)):
        groups[1]["lr"] = lr
    first, second = ROOT(ours_groups, lr=torch.tensor(0.01)), ROOT(theirs_groups, lr=0.01)
    for step in range(3):
        give_gradients(step, ours, theirs)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


def test_maximize_ascends() -> None:
    """Maximizing equals minimizing with negated gradients, in both algorithms."""
    ours, ours_groups = mixed()
    theirs, theirs_groups = mixed()
    first, second = ROOT(ours_groups, maximize=True), ROOT(theirs_groups)
    for step in range(3):
        give_gradients(step, ours, theirs)
        for p in theirs:
            assert p.grad is not None
            p.grad.neg_()
        first.step()
        second.step()
    assert all(map(torch.equal, ours, theirs))


def test_gradients_are_never_written() -> None:
    """A step changes no bit of any `p.grad` and keeps no reference to it."""
    params, groups = mixed()
    optimizer = ROOT(groups)
    for step in range(2):
        give_gradients(step, params)
        before = [p.grad.clone() for p in params if p.grad is not None]
        optimizer.step()
        assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
        pointers = {p.grad.data_ptr() for p in params if p.grad is not None}
        assert not pointers & {t.data_ptr() for state in optimizer.state.values() for t in state.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_nesterov_the_state_is_the_average(dtype: torch.dtype) -> None:
    """Orthogonalizing the buffer itself leaves the buffer what it was: the average of the gradients."""
    params = parameters([(8, 12)], dtype)
    optimizer = ROOT(params, nesterov=False, ns_dtype=torch.bfloat16, **MUON)
    average = torch.zeros(8, 12, dtype=dtype)
    for step in range(4):
        give_gradients(step, params)
        assert params[0].grad is not None
        average.lerp_(params[0].grad, 1 - 0.95)
        optimizer.step()
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], average)


def test_a_zero_gradient_only_decays() -> None:
    """Zero gradients from the start change the weights by weight decay alone."""
    params = parameters([(8, 12), (0, 4)])
    start = params[0].detach().clone()
    for p in params:
        p.grad = torch.zeros_like(p)
    ROOT(params, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(params[0].detach(), start * 0.95)


def test_parameters_without_gradients_stay() -> None:
    """No gradient, no step, no state; also when nothing has one."""
    params, groups = mixed()
    start = copies(params)
    optimizer = ROOT(groups)
    optimizer.step()
    assert all(map(torch.equal, params, start))
    assert not optimizer.state


def test_bfloat16_parameters_move() -> None:
    """Parameters in bfloat16 keep their dtype and their state's, and stay finite."""
    params = parameters(dtype=torch.bfloat16)
    start = copies(params)
    optimizer = ROOT(params, lr=0.1)
    give_gradients(0, params)
    optimizer.step()
    for p, s in zip(params, start, strict=True):
        assert p.dtype == optimizer.state[p]["momentum_buffer"].dtype == torch.bfloat16
        assert p.isfinite().all()
        assert not torch.equal(p, s)


@pytest.mark.parametrize("through_file", [False, True])
def test_a_loaded_state_continues_to_the_bit(through_file: bool) -> None:
    """Saving, loading into a new optimizer and going on equals never having stopped."""
    ours, ours_groups = mixed()
    optimizer = ROOT(ours_groups, lr=0.02)
    for step in range(3):
        give_gradients(step, ours)
        optimizer.step()
    state: Any = copy.deepcopy(optimizer.state_dict())
    if through_file:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file)
    theirs, theirs_groups = mixed()
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            q.copy_(p)
    resumed = ROOT(theirs_groups)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        give_gradients(step, ours, theirs)
        optimizer.step()
        resumed.step()
    assert all(map(torch.equal, ours, theirs))


def test_a_copy_continues_to_the_bit() -> None:
    """A deep copy of model and optimizer together goes on as the original does, and has no observers."""
    params, groups = mixed()
    optimizer = ROOT(groups)
    seen: list[object] = []
    optimizer.register_observer(seen.append)
    give_gradients(0, params)
    optimizer.step()
    twin_params, twin = copy.deepcopy((params, optimizer))
    count = len(seen)
    give_gradients(1, params, twin_params)
    twin.step()
    assert len(seen) == count
    optimizer.step()
    assert all(map(torch.equal, params, twin_params))


def test_a_checkpoint_of_muon_can_be_loaded() -> None:
    """The momentum of `torch.optim.Muon` is taken over; options that it lacks are the constructor's."""
    params = parameters([(12, 20), (20, 12)])
    theirs = copies(params)
    muon = torch.optim.Muon(theirs)
    give_gradients(0, theirs)
    muon.step()
    optimizer = ROOT(params, outlier_quantile=0.8)
    optimizer.load_state_dict(copy.deepcopy(muon.state_dict()))
    assert optimizer.param_groups[0]["outlier_quantile"] == 0.8
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], muon.state[theirs[0]]["momentum_buffer"])
    give_gradients(1, params)
    optimizer.step()


def test_a_closure_is_evaluated_with_gradients() -> None:
    """`step(closure)` runs the closure once, with gradients on, and returns its loss."""
    params = parameters([(4, 6)])
    optimizer = ROOT(params)

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = params[0].square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_generators_and_names_are_accepted() -> None:
    """A model's `parameters()` and `named_parameters()` work as they come."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
    assert len(ROOT(model.parameters()).param_groups[0]["params"]) == 2
    assert ROOT(model.named_parameters()).param_groups[0]["param_names"] == ["0.weight", "1.weight"]


def test_clipping_keeps_an_infinite_gradient_out_of_the_weights() -> None:
    """One Inf among the gradients is an outlier like others: the update is finite."""
    params = parameters([(12, 20)])
    optimizer = ROOT(params, nesterov=False)
    give_gradients(0, params)
    assert params[0].grad is not None
    params[0].grad[3, 4] = torch.inf
    optimizer.step()
    assert params[0].isfinite().all()
