from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from root_dash.optim import ROOT, Observation
from tests.optim.training import MUON, give_gradients, mixed, parameters


def as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


class Witness:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def __call__(self, observation: Observation) -> None:
        assert observation.gradient is not None
        assert observation.weight is not None
        gradient, weight = (tuple(one.clone() for one in of) for of in (observation.gradient, observation.weight))
        self.seen.append(replace(observation, gradient=gradient, weight=weight))


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"maximize": True}, MUON, {"lr": torch.tensor(0.01)}])
def test_observing_changes_no_bit(options: dict[str, Any]) -> None:
    """Weights and state are equal to the bit with and without an observer."""
    ours, ours_groups = mixed()
    theirs, theirs_groups = mixed()
    watched, alone = ROOT(ours_groups, **options), ROOT(theirs_groups, **options)
    watched.register_observer(Witness())
    for step in range(4):
        give_gradients(step, ours, theirs)
        watched.step()
        alone.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        for key, value in alone.state[q].items():
            assert torch.equal(watched.state[p][key], value)


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"nesterov": False}, {"outlier_quantile": 1.0}])
def test_what_is_seen_is_what_is_done(options: dict[str, Any]) -> None:
    """M, ε, B, X and the learning rate satisfy their definitions, and the weights then move by lr X and decay."""
    params, groups = mixed()
    optimizer = ROOT(groups, lr=0.05, weight_decay=0.1, **options)
    give_gradients(0, params)
    optimizer.step()
    give_gradients(1, params)
    before: dict[Tensor, Tensor] = {p: p.detach().clone() for p in params}
    witness = Witness()
    optimizer.register_observer(witness)
    optimizer.step()
    seen = [p for observation in witness.seen for p in observation.parameters]
    assert len(seen) == len(params)
    assert set(seen) == set(params)
    for o in witness.seen:
        assert o.gradient is not None
        assert o.weight is not None
        decayed_by = 1 - 0.1 * (0.05 if o.algorithm == "root" else 0.01)
        assert len({p.shape for p in o.parameters}) == 1
        assert set(o.pieces) == {0}
        for i, (p, weight) in enumerate(zip(o.parameters, o.weight, strict=True)):
            assert torch.equal(weight, as_matrix(before[p]))
            assert p.grad is not None
            assert torch.equal(o.gradient[i], as_matrix(p.grad))
            torch.testing.assert_close(as_matrix(p), weight * decayed_by - o.lr * o.update[i])
            state = optimizer.state[p]
            if o.algorithm == "adamw":
                assert torch.equal(o.momentum[i], as_matrix(state["exp_avg"]))
                assert o.lr == 0.01
            else:
                sign = -1 if options.get("maximize") else 1
                buffer = state["momentum_buffer"]
                m = (sign * p.grad).lerp(buffer, 0.95) if options.get("nesterov", True) else buffer
                assert torch.equal(o.momentum[i], as_matrix(m))
                assert o.lr == pytest.approx(0.05 * 0.2 * max(as_matrix(p).shape) ** 0.5)
        if o.algorithm == "adamw" or options.get("outlier_quantile") == 1.0:
            assert o.threshold is None
            assert o.base is None
        else:
            assert o.threshold is not None
            assert o.base is not None
            for eps, m, base in zip(o.threshold, o.momentum, o.base, strict=True):
                assert torch.equal(base, m.clamp(-eps, eps))
                torch.testing.assert_close(eps, m.abs().quantile(0.9))


def test_equal_shapes_come_together() -> None:
    """There is one observation per shape and algorithm, in the parameters' orientation; a vector is one row."""
    params, groups = mixed()
    optimizer = ROOT(groups)
    witness = Witness()
    optimizer.register_observer(witness)
    give_gradients(0, params)
    optimizer.step()
    shapes = [(o.algorithm, tuple(o.update.shape)) for o in witness.seen]
    assert shapes == [
        ("root", (2, 8, 12)),
        ("root", (1, 12, 8)),
        ("root", (1, 6, 12)),
        ("adamw", (2, 1, 5)),
        ("adamw", (1, 1, 1)),
        ("adamw", (1, 9, 4)),
    ]
    for o in witness.seen:
        assert o.gradient is not None
        assert torch.stack(o.gradient).shape == o.momentum.shape == o.update.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_products_are_those_of_the_scaled_base(dtype: torch.dtype) -> None:
    """A = scale² B Bᵀ on the short side, its square, and the scale come with the batch, tall matrices included."""
    params = parameters([(8, 12), (12, 8), (6, 6)], dtype)
    optimizer = ROOT(params)
    witness = Witness()
    optimizer.register_observer(witness)
    give_gradients(0, params)
    optimizer.step()
    assert len(witness.seen) == 3
    for o in witness.seen:
        assert o.base is not None
        assert o.gram is not None
        assert o.gram_squared is not None
        assert o.gram_scale is not None
        rows, cols = o.base.shape[1:]
        short = o.base if rows <= cols else o.base.mT
        expected = (o.gram_scale * short) @ (o.gram_scale * short).mT
        torch.testing.assert_close(o.gram, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(o.gram_squared, expected @ expected, rtol=1e-3, atol=1e-4)


def test_every_matrix_of_a_parameter_is_shown() -> None:
    """Every expert and head is shown as a matrix, with its index within the parameter."""
    stack, fused = parameters([(3, 4, 6), (8, 6)])
    groups: list[dict[str, Any]] = [
        {"params": [stack], "batch_ndim": 1},
        {"params": [fused], "split_sizes": (4, 2, 2)},
    ]
    optimizer = ROOT(groups)
    witness = Witness()
    optimizer.register_observer(witness)
    before = [stack.detach().clone(), fused.detach().clone()]
    give_gradients(0, [stack, fused])
    optimizer.step()
    shown = {
        (p is fused, piece): (o, i)
        for o in witness.seen
        for i, (p, piece) in enumerate(zip(o.parameters, o.pieces, strict=True))
    }
    assert set(shown) == {(False, 0), (False, 1), (False, 2), (True, 0), (True, 1), (True, 2)}
    expected = [*before[0], *before[1].split((4, 2, 2))]
    for weight, (o, i) in zip(expected, (shown[key] for key in sorted(shown)), strict=True):
        assert o.weight is not None
        assert torch.equal(o.weight[i], weight)


def test_a_removed_observer_sees_nothing() -> None:
    """The handle ends the observation, by `remove()` or as a context manager; other observers stay."""
    params = parameters()
    optimizer = ROOT(params)
    first, second = Witness(), Witness()
    handle = optimizer.register_observer(first)
    with optimizer.register_observer(second):
        give_gradients(0, params)
        optimizer.step()
    batches = len(first.seen)
    assert batches == len(second.seen) == 4
    optimizer.step()
    assert (len(first.seen), len(second.seen)) == (2 * batches, batches)
    handle.remove()
    optimizer.step()
    assert len(first.seen) == 2 * batches


def test_an_observer_that_wants_no_step_costs_none() -> None:
    """`wanted` is called in every step. If it returns False, nothing is shown, and the step does no extra work."""
    params, groups = mixed()
    optimizer = ROOT(groups)
    witness, wanted = Witness(), False

    def operations() -> list[str]:
        give_gradients(0, params)
        with Counted() as counted:
            optimizer.step()
        names: list[str] = counted.names
        return names

    operations()  # makes the state
    without = operations()
    optimizer.register_observer(witness, lambda: wanted)
    assert operations() == without
    assert witness.seen == []
    wanted = True
    assert len(operations()) > len(without)
    assert witness.seen


class Counted(TorchDispatchMode):
    """The names of all operations that run under it, in their order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_observers_are_not_state() -> None:
    """A checkpoint has no observers, and loading a checkpoint keeps the registered observers."""
    params = parameters()
    optimizer = ROOT(params)
    witness = Witness()
    optimizer.register_observer(witness)
    give_gradients(0, params)
    optimizer.step()
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    optimizer.load_state_dict(optimizer.state_dict())
    witness.seen.clear()
    optimizer.step()
    assert witness.seen
