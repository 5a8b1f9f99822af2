"""The numerical hazards of this family of optimizers, each provoked.

| hazard | tests |
|---|---|
| zero gradient | below; test_conformance: zero_gradients_...; test_orthogonalize: zero_gives_zero |
| NaN or one Inf in a gradient | test_faults, all of it |
| NaN in quantile or clamp, an Inf spike clipped | below; test_outliers: nan_..., a_few_infinite_entries_... |
| gradients of 1e-30 and 1e30 | below, through the optimizer; test_orthogonalize: scale_does_not_matter |
| rank deficiency | below |
| ns_steps other than 5 | below, for every set that has a name |
| σ above 1 by rounding | below, for rank one and for diagonals; test_orthogonalize: no_singular_value_overshoots |
| float16 before the norm is taken | test_orthogonalize: half_precision_products_are_close |
| the first Gram matrix in half precision | below |
| aliasing, in-place | below; test_conformance: a_step_writes_...; test_orthogonalize: the_input_is_left_alone |
| 1 x n, n x 1, 1 x 1, 0 x n | below |
| non-contiguous, channels-last | below; test_pieces: viewable_tells_whether_the_pieces_are_views |
| sparse, complex | below |
| a generator of parameters | below |
| a shape without a set of its own | below |
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from root_dash.coefficients.tables import NAMES, PAPER, PAPER_STEPS, evaluate, resolve
from root_dash.optim import ROOT
from root_dash.optim.newton_schulz.orthogonalize import newton_schulz
from root_dash.optim.newton_schulz.plan import is_fine, plan
from root_dash.optim.options import own_normalization
from root_dash.optim.outliers.threshold import split, threshold
from tests.optim.conformance import CASES, Case, assert_equal_bits, every_case, train
from tests.optim.reference import with_singular_values
from tests.optim.training import copies, give_gradients, orthogonalize, parameters

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# What a σ from (0, 1.01] becomes at most, in exact arithmetic, whatever the number of steps.
SUPREMA = {"adaptive": 1.06, "robust": 1.06, "adanewton": 1.21, "muon": 1.21, "polar_express": 2.0}


SCALE_FREE = [name for name, case in CASES.items() if case.root and "outlier_threshold" not in case.options]


def orthogonalized(matrices: Tensor, name: str, steps: int, dtype: torch.dtype | None) -> Tensor:
    """The updates of a batch (L, m, n) under a choice of coefficients, with the normalization made for it."""
    shape = (min(matrices.shape[1:]), max(matrices.shape[1:]))
    fine = is_fine(plan(*shape, steps, dtype, "auto", matrices.dtype, "cpu"))
    triples = resolve(name, steps, shape, fine=fine)
    return newton_schulz(matrices, triples, normalization=own_normalization(name), eps=1e-30, dtype=dtype).update


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_gradient_lets_the_momentum_decay(dtype: torch.dtype, nesterov: bool) -> None:
    """The buffer shrinks by μ, the update stays the one before, and nothing of it depends on the lost scale."""
    params = parameters([(6, 10)], dtype)
    optimizer = ROOT(params, nesterov=nesterov, weight_decay=0.0, lr=0.01, momentum=0.5, calibrate_every=0)
    train(optimizer, params, 0, 1)
    buffer = optimizer.state[params[0]]["momentum_buffer"].clone()
    moves = []
    for _ in range(3):
        params[0].grad = torch.zeros_like(params[0])
        before = params[0].detach().clone()
        optimizer.step()
        moves.append(params[0].detach() - before)
        buffer *= 0.5  # exact
        assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], buffer)
    half = dtype in (torch.bfloat16, torch.float16)
    torch.testing.assert_close(moves[0], moves[2], rtol=0, atol=0.02 if half else 1e-6)
    assert moves[0].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_contains_a_spike(dtype: torch.dtype) -> None:
    """An infinite entry is clipped to ε as any large one is; NaN is not hidden and stays in its matrix."""
    M = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    M[0, 2, 3], M[1, 2, 3], M[2, 2, 3] = torch.inf, 1e4, torch.nan
    base = split(M, threshold(M, 0.9))
    update = orthogonalized(base, "robust", 5, None)
    assert base[0].isfinite().all()
    assert torch.equal(base[0, 2, 3], base[0].abs().max())
    assert update[:2].isfinite().all()
    assert base[2].isnan().any()
    assert update[2].isnan().all()


@pytest.mark.parametrize("exponent", [-100, 99])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_the_gradients_does_not_matter(name: str, exponent: int) -> None:
    """Multiplied by powers of two from 8e-31 to 6e29, gradients of matrices move them alike to the bit.

    No eps gets in the way, and nothing over- or underflows. AdamW's eps and a fixed threshold are of a scale.
    """
    case = Case(CASES[name].options, CASES[name].root)
    ours, theirs = case.parameters(), case.parameters()
    first, second = case.optimizer(ours, calibrate_every=0), case.optimizer(theirs, calibrate_every=0)
    for step in range(2):
        give_gradients(step, ours, theirs)
        for p in ours:
            assert p.grad is not None
            p.grad *= 2.0**exponent
        first.step()
        second.step()
    assert_equal_bits(ours, theirs)


@pytest.mark.parametrize("name", ["robust", "muon", "polar_express"])
@pytest.mark.parametrize(("rank", "shape"), [(1, (64, 160)), (8, (64, 160)), (8, (64, 64)), (32, (128, 256))])
def test_null_directions_stay_bounded(rank: int, shape: tuple[int, int], name: str) -> None:
    """What rounding puts into a matrix' null space stays small in float32; in bfloat16 it may reach the size of 1.

    Five steps multiply a small σ by the product of their slopes: 779 with the universal set, 485 with Muon's. Iterated
    in Gram space, as wide matrices are, the universal set leaves up to 0.13 there in float32; step by step, 5e-5.
    """
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(with_singular_values(rng, *shape, np.linspace(1, 0.5, rank)))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    left, right = left[:, :rank], right[:rank]

    def null_part(dtype: torch.dtype, algorithm: Any) -> float:
        normalization = own_normalization(name)
        X = orthogonalize(
            matrix, resolve(name, 5), normalization=normalization, dtype=dtype, algorithm=algorithm
        ).double()
        return float(torch.linalg.matrix_norm(X - left @ (left.mT @ X @ right.mT) @ right, 2))

    assert null_part(torch.float64, "auto") <= 1e-9
    assert null_part(torch.float32, "standard") <= 1e-3
    assert null_part(torch.float32, "auto") <= 0.2
    assert null_part(torch.bfloat16, "auto") <= 1.06


@pytest.mark.parametrize("steps", range(1, 21))
@pytest.mark.parametrize("name", [name for name in NAMES if name != "paper"])
def test_every_set_is_bounded_at_any_number_of_steps(name: str, steps: int) -> None:
    """No σ from (0, 1.01] ends above what is written of its set, and none turns negative but under Muon's triple."""
    sigma = np.concatenate([np.geomspace(1e-9, 1e-3, 2_001), np.linspace(1e-3, 1.01, 20_001)])
    ends = evaluate(resolve(name, steps), sigma)
    assert np.max(np.abs(ends)) <= SUPREMA[name]
    assert np.min(ends) > 0


@pytest.mark.parametrize(("shape", "bound"), list(zip(PAPER, [3.4, 1.25, 1.13, 1.22], strict=True)))
def test_the_papers_sets_are_bounded_where_they_may_be_used(shape: tuple[int, int], bound: float) -> None:
    """At their five steps, from (0, 1.01]; at any other number they are refused."""
    sigma = np.linspace(1e-3, 1.01, 20_001)
    assert np.max(np.abs(evaluate(resolve("paper", PAPER_STEPS, shape), sigma))) <= bound
    for steps in {*range(1, 21)} - {PAPER_STEPS}:
        with pytest.raises(ValueError, match="ns_steps must be 5 with ns_coefficients='paper'"):
            ROOT(parameters(), ns_coefficients="paper", ns_steps=steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(32, 80), (24, 24)])
def test_rank_one_does_not_overshoot(shape: tuple[int, int], name: str, dtype: torch.dtype | None) -> None:
    """With σ₁ at the very bound, 40 matrices of rank one stay below each set's supremum in every dtype."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, shape[0], 1, generator=generator), torch.randn(40, 1, shape[1], generator=generator)
    for steps in (PAPER_STEPS,) if name == "paper" else (1, 3, 5, 6, 20):
        X = orthogonalized(left @ right, name, steps, dtype)
        bound = 3.4 if name == "paper" else SUPREMA[name]
        assert torch.linalg.matrix_norm(X.double(), 2).max() <= bound


def diagonals(shape: tuple[int, int]) -> Tensor:
    """Diagonal matrices (L, m, n), whose roundings do not average out: one large σ and up to two, the rest small."""
    generator = torch.Generator().manual_seed(0)
    count = 2**13 // shape[0]
    sigma = 0.7 * torch.rand(count, shape[0], generator=generator) ** 6
    sigma[:, 1:3] *= torch.rand(count, 2, generator=generator).round()
    sigma[:, 0] = 1
    sigma *= torch.exp(3 * torch.rand(count, 1, generator=generator))
    matrices = torch.zeros(count, *shape)
    matrices.diagonal(dim1=1, dim2=2).copy_(sigma)
    return matrices


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *product([(16, 16), (16, 32), (128, 128), (128, 256)], [torch.float32, torch.bfloat16, None]),
        *product([(16, 16), (16, 32)], [torch.float16]),
        *(pytest.param(shape, torch.float16, marks=pytest.mark.long) for shape in [(128, 128), (128, 256)]),
    ],
)
def test_diagonals_do_not_overshoot(shape: tuple[int, int], dtype: torch.dtype | None) -> None:
    """No σ ends above 1.06 where every rounding of a step may push it the same way, in any dtype."""
    for steps in (2, 3, 4, 5, 8):
        X = orthogonalized(diagonals(shape), "robust", steps, dtype).double()
        assert X.diagonal(dim1=1, dim2=2).abs().max() <= 1.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, None])
@pytest.mark.parametrize("shape", [(16, 32), (128, 128), (256, 128)])
def test_autocast_changes_no_bit(shape: tuple[int, int], dtype: torch.dtype | None) -> None:
    """A step under the user's autocast keeps the arithmetic that its set is for; in autocast's, 1.07 was seen."""
    matrices = diagonals(shape)[:4] if shape[0] <= shape[1] else diagonals((shape[1], shape[0])).mT[:4]
    outside = orthogonalized(matrices, "robust", 5, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(orthogonalized(matrices, "robust", 5, dtype), outside)


def test_bfloat16_needs_a_set_of_its_own() -> None:
    """A set that stays within 1.06 in float16 and float32, and with 0.2 % between the steps, is lost in bfloat16."""
    triples = (
        (5.0683, -14.7305, 10.7036),
        (4.6264, -9.3423, 4.7521),
        (4.2814, -6.9486, 2.9135),
        (3.0936, -4.049, 1.5138),
        (2.7581, -3.3097, 1.5012),
    )
    matrices = diagonals((16, 16))
    for dtype in (torch.float32, torch.float16):
        assert orthogonalize(matrices, triples, dtype=dtype).abs().max() <= 1.06
    assert orthogonalize(matrices, triples, dtype=torch.bfloat16).abs().max() > 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m", [64, 512])
def test_the_first_gram_matrix_does_not_underflow(m: int, dtype: torch.dtype) -> None:
    """With all σ equal, where the Gram matrix squared would be 1/m² on its diagonal, a step is exact to rounding.

    At m = 512 that is 3.8e-6, of which float16 keeps six bits.
    """
    hadamard = torch.ones(1, 1)
    while len(hadamard) < m:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    a, b, c = 3.0, -2.0, 0.5
    sigma = 1 / (1.003 * m**0.125)
    expected = a * sigma + b * sigma**3 + c * sigma**5
    X = newton_schulz(hadamard.unsqueeze(0), [(a, b, c)], normalization="schatten8", eps=1e-30, dtype=dtype).update[0]
    ratio = X.double() / (hadamard.double() * m**-0.5)
    assert (ratio / expected - 1).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("ns_dtype", "quantile"), [(None, 0.9), (torch.bfloat16, 1.0), (torch.float16, 1.0)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_is_the_average(
    dtype: torch.dtype, nesterov: bool, ns_dtype: torch.dtype | None, quantile: float
) -> None:
    """Whatever is orthogonalized in place of it, the buffer is the moving average of the gradients to the bit."""
    params = parameters([(8, 12), (12, 8), (8, 12)], dtype)
    optimizer = ROOT(params, nesterov=nesterov, outlier_quantile=quantile, ns_dtype=ns_dtype, calibrate_every=0)
    averages = [torch.zeros_like(p) for p in params]
    for step in range(4):
        give_gradients(step, params)
        for average, p in zip(averages, params, strict=True):
            assert p.grad is not None
            average.lerp_(p.grad, 1 - 0.95)
        optimizer.step()
        assert_equal_bits([optimizer.state[p]["momentum_buffer"] for p in params], averages)


@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_a_vector_is_normalized(shape: tuple[int, int], normalization: str) -> None:
    """A matrix of rank one by its shape becomes the vector over its length, times the polynomial at the bound."""
    M = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    triples = resolve("robust", 20)  # at which every σ is 1
    X = newton_schulz(M, triples, normalization=normalization, eps=1e-30).update  # type: ignore[arg-type]
    torch.testing.assert_close(X, M / M.norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:ns_coefficients='paper':UserWarning")
def test_a_shape_without_a_set_of_its_own_steps(name: str) -> None:
    """Shapes that nobody fitted anything to are stepped without a word, and come out with σ near 1."""
    params = parameters([(3, 100), (7, 11), (13, 13)])
    start = copies(params)
    optimizer = ROOT(params, lr=1.0, weight_decay=0.0, adjust_lr_fn=None, ns_coefficients=name)
    train(optimizer, params, 0, 1)
    for p, s in zip(params, start, strict=True):
        sigma = torch.linalg.svdvals((p - s).detach())
        assert sigma.max() <= (3.4 if name == "paper" else SUPREMA[name]) + 1e-3
        assert sigma.median() >= 0.5


@every_case
def test_strides_do_not_matter(case: Case) -> None:
    """Parameters that are slices, or channels-last, move as contiguous ones do, whatever their gradients' strides."""
    plain = case.parameters()
    sliced = [nn.Parameter(torch.stack([p.detach()] * 2, -1)[..., 0]) for p in plain]
    last = [nn.Parameter(p.detach().clone()) for p in plain]
    for p in last:
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        elif p.ndim >= 2:
            p.data = p.data.mT.contiguous().mT
    lists = [plain, sliced, last]
    optimizers = [case.optimizer(params) for params in lists]
    for step in range(3):
        give_gradients(step, *lists)
        for optimizer in optimizers:
            optimizer.step()
    for other in (sliced, last):
        # The least singular values are multiplied up to 779 times with what rounding makes of them.
        tolerance = 1e-3 if case.options.get("ns_dtype") == torch.bfloat16 else 2e-5
        for p, q in zip(plain, other, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (1, 1), (1, 7), (7, 1), (2, 0, 3)])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("root", {"calibrate_every": 1}),
        *product(["root", "adamw"], [{"nonfinite": "skip"}, {"foreach": False}]),
    ],
)
def test_degenerate_shapes_step(shape: tuple[int, ...], algorithm: str, options: dict[str, Any]) -> None:
    """Empty parameters and those of one row, column or entry are stepped, calibrated and saved, beside others."""
    params = parameters([shape, (4, 6)])
    start = copies(params)
    optimizer = ROOT([{"params": params, "algorithm": algorithm}], **{"calibrate_every": 0, **options})
    train(optimizer, params, 0, 4)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, 4, 6)
    for p, s in zip(params, start, strict=True):
        assert p.isfinite().all()
        assert p.numel() == 0 or not torch.equal(p, s)


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda model: list(model.parameters()),
    "tuple": lambda model: tuple(model.parameters()),
    "generator": lambda model: model.parameters(),
    "names": lambda model: model.named_parameters(),
    "list of names": lambda model: list(model.named_parameters()),
    "dictionary's values": lambda model: dict(model.named_parameters()).values(),
    "dictionary's items": lambda model: dict(model.named_parameters()).items(),
    "groups": lambda model: [{"params": [p]} for p in model.parameters()],
    "groups from a generator": lambda model: ({"params": p} for p in model.parameters()),
    "group of a generator": lambda model: [{"params": model.parameters()}],
    "group of names": lambda model: [{"params": model.named_parameters()}],
    "group of a tuple": lambda model: [{"params": tuple(model.parameters())}],
}


@pytest.mark.parametrize("form", FORMS)
def test_parameters_come_in_any_form(form: str) -> None:
    """Lists, generators, names and groups of each give the same steps."""
    ends = []
    for build in (FORMS["list"], FORMS[form]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
        optimizer = ROOT(build(model))
        train(optimizer, list(model.parameters()), 0, 2)
        ends.append(list(model.parameters()))
    assert_equal_bits(*ends)
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    assert names == (["0.weight", "1.weight"] if "names" in form or "items" in form else [])


def square() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 3))


@pytest.mark.parametrize("algorithm", ["root", "adamw"])
def test_complex_and_sparse_are_refused(algorithm: str) -> None:
    """Complex and sparse parameters at construction, in a group added later too, and sparse gradients at the step."""
    optimizer = ROOT([{"params": [square()], "algorithm": algorithm}])
    for bad, message in (
        (torch.zeros(3, 3, dtype=torch.complex64), "must be real"),
        (torch.ones(3, 3).to_sparse(), "must be dense"),
    ):
        parameter = nn.Parameter(bad)
        with pytest.raises(ValueError, match=message):
            ROOT([{"params": [parameter], "algorithm": algorithm}])
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [parameter], "algorithm": algorithm})
        assert len(optimizer.param_groups) == 1
    good, bad = parameters([(3, 3), (3, 3)])
    start = copies([good, bad])
    optimizer = ROOT([{"params": [good, bad], "algorithm": algorithm}])
    good.grad, bad.grad = torch.ones(3, 3), torch.ones(3, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()
    assert_equal_bits([good, bad], start)
