"""What any optimizer of torch has to do, asked of ROOT in every way that it can step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from root_dash.optim import ROOT
from tests.optim.conformance import CASES, Case, assert_equal_bits, every_case, regression, some_cases, state_of, train
from tests.optim.training import copies, give_gradients, mixed, parameters


@every_case
def test_one_by_one_equals_batched(case: Case) -> None:
    """With `foreach=False` matrices are orthogonalized alone, and move as those of a batch do, but for rounding."""
    ours, theirs = case.parameters(), case.parameters()
    train(case.optimizer(ours), ours, 0, 3)
    train(case.optimizer(theirs, foreach=False), theirs, 0, 3)
    # A step moves an entry by at most 0.02 * 0.2 * sqrt(12); half precision rounds differently in another order.
    half = case.options.get("ns_dtype") == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 if half else 2e-5)


@every_case
def test_a_step_writes_weights_and_state_alone(case: Case) -> None:
    """Every parameter moves, has state of its own memory, and keeps its gradient to the bit."""
    params = case.parameters()
    start = copies(params)
    optimizer = case.optimizer(params)
    give_gradients(0, params)
    gradients = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.step()
    assert not any(map(torch.equal, params, start))
    assert set(optimizer.state) == set(params)
    for p, gradient in zip(params, gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
        for tensor in optimizer.state[p].values():
            assert tensor.untyped_storage().data_ptr() != p.grad.untyped_storage().data_ptr()
            assert not tensor.requires_grad


@every_case
def test_two_runs_are_equal_to_the_bit(case: Case) -> None:
    """The same parameters, gradients and options give the same weights and state."""
    runs = []
    for _ in range(2):
        params = case.parameters()
        optimizer = case.optimizer(params)
        train(optimizer, params, 0, 6)
        runs.append([*params, *state_of(optimizer).values()])
    assert_equal_bits(*runs)


@every_case
def test_the_type_of_the_parameters_is_kept(case: Case) -> None:
    """Weights and state keep float64, bfloat16 and float16, and move as in float32, to what those types resolve."""
    ends = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        params = case.parameters(dtype)
        start = copies(params)
        optimizer = case.optimizer(params, lr=0.5)
        train(optimizer, params, 0, 2)
        for p in params:
            kept = [value for key, value in optimizer.state[p].items() if key != "step"]
            assert {p.dtype, *(value.dtype for value in kept)} == {dtype}
            assert p.isfinite().all()
        ends[dtype] = torch.cat([(p.double() - s.double()).flatten() for p, s in zip(params, start, strict=True)])
    for dtype, share in ((torch.float32, 0.02), (torch.bfloat16, 0.3), (torch.float16, 0.1)):
        assert (ends[dtype] - ends[torch.float64]).norm() <= share * ends[torch.float64].norm()


@every_case
def test_gradless_and_frozen_parameters_stay(case: Case) -> None:
    """Without a gradient there is no step and no state, and the others do not notice; a late gradient starts one."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    still, moving = params[::2], params[1::2]
    start = copies(still)
    still[0].requires_grad_(False)
    for step in range(2):
        give_gradients(step, params)
        for p in still:
            p.grad = None
        optimizer.step()
    assert_equal_bits(still, start)
    assert set(optimizer.state) == set(moving)
    give_gradients(2, params)
    optimizer.step()
    assert set(optimizer.state) == set(params)


@every_case
def test_zero_gradients_without_decay_change_nothing(case: Case) -> None:
    """No gradient ever, no weight decay: every weight keeps its bits."""
    params = case.parameters()
    start = copies(params)
    optimizer = case.optimizer(params, weight_decay=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.step()
    assert_equal_bits(params, start)


@pytest.mark.parametrize(("name", "shape"), [*((name, ()) for name in CASES), ("mixed", (1,)), ("adaptive", (1,))])
def test_a_tensor_learning_rate_equals_a_number(name: str, shape: tuple[int, ...]) -> None:
    """In a tensor of one element, changed in place between the steps, the learning rate does what the number does."""
    case = CASES[name]
    ours, theirs = case.parameters(), case.parameters()
    rate = torch.full(shape, 0.25)
    first, second = case.optimizer(ours, lr=rate), case.optimizer(theirs, lr=0.25)
    for step in range(3):
        give_gradients(step, ours, theirs)
        first.step()
        second.step()
        for group in first.param_groups:
            assert isinstance(group["lr"], Tensor)
            group["lr"].fill_(2.0 ** -(3 + step))  # exact in any precision
        for group in second.param_groups:
            group["lr"] = 2.0 ** -(3 + step)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@some_cases
def test_types_in_one_group_do_not_meet(case: Case) -> None:
    """Parameters of several types in one group move as in groups of their own."""
    together = [*case.parameters(), *case.parameters(torch.bfloat16), *case.parameters(torch.float64)]
    alone = copies(together)
    algorithm = "root" if case.root else "adamw"
    count = len(case.root) or len(case.adamw)
    stride = len(case.root) + len(case.adamw)
    picked = [
        [params[i + j] for i in range(0, 3 * stride, stride) for j in range(count)] for params in (together, alone)
    ]
    first = ROOT([{"params": picked[0], "algorithm": algorithm}], lr=0.02)
    others = [
        ROOT([{"params": picked[1][i : i + count], "algorithm": algorithm}], lr=0.02)
        for i in range(0, 3 * count, count)
    ]
    for step in range(3):
        give_gradients(step, *picked)
        first.step()
        for optimizer in others:
            optimizer.step()
    assert_equal_bits(*picked)


def test_groups_have_their_own_options() -> None:
    """A learning rate, a weight decay and other options of a group act as those of an optimizer of its own."""
    shapes = [(6, 10), (10, 6), (8, 8), (5,)]
    ours, theirs = parameters(shapes), parameters(shapes)
    options: list[dict[str, Any]] = [
        {"lr": 0.1, "weight_decay": 0.0},
        {"weight_decay": 0.3, "momentum": 0.5, "nesterov": False, "ns_coefficients": "muon"},
        {"outlier_quantile": 0.5, "adjust_lr_fn": "original", "ns_steps": 7},
        {"algorithm": "adamw", "lr": 1e-3, "betas": (0.5, 0.6), "adamw_eps": 1e-3},
    ]
    together = ROOT([{"params": [p], **o} for p, o in zip(ours, options, strict=True)], lr=0.02)
    alone = [ROOT([{"params": [p], **o}], lr=0.02) for p, o in zip(theirs, options, strict=True)]
    for step in range(4):
        give_gradients(step, ours, theirs)
        together.step()
        for optimizer in alone:
            optimizer.step()
    assert_equal_bits(ours, theirs)


@some_cases
def test_a_group_can_be_added_later(case: Case) -> None:
    """It gets the defaults it does not set, and moves from then on as in an optimizer of its own."""
    params = case.parameters()
    optimizer = case.optimizer(params, weight_decay=0.25)
    train(optimizer, params, 0, 2)
    late, alone = parameters([(4, 6), (6, 4)]), parameters([(4, 6), (6, 4)])
    optimizer.add_param_group({"params": late[0], "lr": 0.5})
    optimizer.add_param_group({"params": (p for p in late[1:]), "algorithm": "adamw"})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25] * len(optimizer.param_groups)
    assert optimizer.param_groups[-2]["lr"] == 0.5
    groups: list[dict[str, Any]] = [{"params": alone[:1], "lr": 0.5}, {"params": alone[1:], "algorithm": "adamw"}]
    other = ROOT(groups, **{"lr": 0.02, **case.options, "weight_decay": 0.25})
    for step in range(2, 5):
        give_gradients(step, params)
        give_gradients(step, late, alone)
        optimizer.step()
        other.step()
    assert_equal_bits(late, alone)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert len(saved["param_groups"]) == len(optimizer.param_groups)


def square() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 3))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda: [], ValueError, "empty parameter list"),
        (lambda: iter(()), ValueError, "empty parameter list"),
        (square, TypeError, "should be an iterable of Tensors or dicts"),
        (lambda: [1.0], TypeError, "can only optimize Tensors"),
        (lambda: [square() * 2], ValueError, "non-leaf"),
        (lambda: [{"params": {square(), square()}}], TypeError, "ordered collections"),
        (lambda: [{"params": [p]} for p in [square()] * 2], ValueError, "more than one parameter group"),
        (lambda: [{"params": [square(), ("name", square())]}], ValueError, "names"),
        (lambda: [{"params": [square()]}, {"params": [("name", square())]}], ValueError, "names"),
    ],
)
def test_bad_parameters_are_refused(params: Callable[[], Any], error: type[Exception], message: str) -> None:
    """As torch's optimizers refuse them."""
    with pytest.raises(error, match=message):
        ROOT(params())
    with pytest.raises(error, match=message):
        torch.optim.Muon(params())


@some_cases
def test_hooks_of_a_step_are_called(case: Case) -> None:
    """Before and after each step, an optimizer's own hooks and those of all, in torch's order, until removed."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    calls: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            assert arguments[0] is optimizer
            calls.append(name)

        return called

    handles = [
        optimizer.register_step_pre_hook(hook("before")),
        optimizer.register_step_post_hook(hook("after")),
        register_optimizer_step_pre_hook(hook("before all")),
        register_optimizer_step_post_hook(hook("after all")),
    ]
    train(optimizer, params, 0, 2)
    assert calls == ["before all", "before", "after", "after all"] * 2
    for handle in handles:
        handle.remove()
    train(optimizer, params, 2, 3)
    assert len(calls) == 8


@some_cases
def test_a_closure_gives_its_loss(case: Case) -> None:
    """It is evaluated once, with gradients on even under `no_grad`, and its loss, of any type, is returned."""
    params = case.parameters()
    optimizer = case.optimizer(params)
    values: list[Tensor] = []

    def closure() -> Any:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        values.append(loss)
        return loss

    start = copies(params)
    with torch.no_grad():
        result: Any = optimizer.step(closure)
    assert len(values) == 1
    assert result is values[0]
    assert torch.is_grad_enabled()
    assert not any(map(torch.equal, params, start))
    assert optimizer.step() is None


@pytest.mark.parametrize(
    ("options", "anomaly"),
    [
        ({"calibrate_every": 15}, False),
        ({"ns_coefficients": "adanewton"}, False),
        ({"nesterov": False}, False),
        ({}, True),
    ],
)
def test_a_network_learns(options: dict[str, Any], anomaly: bool) -> None:
    """The loss of a small regression falls to a fifth in 40 steps, with autograd's anomaly detection too."""
    model, loss_of = regression()
    optimizer = ROOT(ROOT.param_groups(model), lr=0.1, weight_decay=0.0, **{"calibrate_every": 0, **options})
    losses = []
    with torch.autograd.set_detect_anomaly(anomaly):
        for _ in range(40):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@every_case
def test_a_quadratic_is_descended(case: Case) -> None:
    """The sum of squares falls at a constant rate, and rises where it is maximized."""
    params = case.parameters()
    optimizer = case.optimizer(params, weight_decay=0.0, lr=0.1)
    before = sum(p.square().sum().item() for p in params)
    for _ in range(10):
        for p in params:
            p.grad = 2 * p.detach()
        optimizer.step()
    after = sum(p.square().sum().item() for p in params)
    assert after > 1.2 * before if case.options.get("maximize") else after < 0.8 * before


def cosine(optimizer: ROOT) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, 8)


def linear_lambda(optimizer: ROOT) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def one_cycle(optimizer: ROOT) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)


def warm_up(optimizer: ROOT) -> Any:
    return lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), cosine(optimizer)], milestones=[2]
    )


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("build", [cosine, linear_lambda, one_cycle, warm_up])
def test_schedulers_set_the_learning_rate(build: Callable[[ROOT], Any], tensor: bool) -> None:
    """Every group is stepped with the rate that the scheduler gives it, a number or a tensor that it writes to."""
    ours, groups = mixed()
    theirs, their_groups = mixed()
    for group in (groups[1], their_groups[1]):
        group["lr"] = torch.tensor(0.01) if tensor else 0.01
    scheduled = ROOT(groups, lr=torch.tensor(0.02) if tensor else 0.02)
    by_hand = ROOT(their_groups, lr=0.02)
    scheduler = build(scheduled)
    rates = set()
    for step in range(6):
        give_gradients(step, ours, theirs)
        for group, other in zip(scheduled.param_groups, by_hand.param_groups, strict=True):
            assert isinstance(group["lr"], Tensor) == tensor
            other.update(lr=float(group["lr"]), betas=group["betas"], momentum=group["momentum"])
        rates.add(float(scheduled.param_groups[0]["lr"]))
        scheduled.step()
        by_hand.step()
        scheduler.step()
    assert len(rates) >= 5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_cycle_cycles_the_betas() -> None:
    """`OneCycleLR` cycles the first of `betas`, which AdamW's groups follow; ROOT's momentum stays what it is."""
    _, groups = mixed()
    optimizer = ROOT(groups)
    one_cycle(optimizer)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.95, 0.95)] * 2
    assert [group["momentum"] for group in optimizer.param_groups] == [0.95] * 2
