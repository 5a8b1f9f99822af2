"""The forms of the iteration, its stability, and what it hands out beside the update."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.coefficients.tables import Normalization, resolve
from root_dash.optim.newton_schulz.orthogonalize import newton_schulz
from root_dash.optim.newton_schulz.plan import plan
from root_dash.optim.newton_schulz.symmetric import combination, gram, polynomial, square, symmetric_product
from root_dash.optim.outliers.threshold import split, threshold
from tests.optim.reference import Array, with_singular_values
from tests.optim.training import orthogonalize

ROBUST = resolve("robust")
STEPS = range(1, 21)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On several threads a product's sums may be cut differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def adversaries(rows: int, cols: int) -> dict[str, Array]:
    """Matrices that an iteration tuned to Gaussians may overshoot on."""
    rng = np.random.default_rng(0)
    noise, rank = rng.standard_normal((rows, cols)), min(rows, cols)
    spike = np.zeros((rows, cols))
    spike[1, 2] = 1e4
    return {
        "gaussian": noise,
        "rank one": np.outer(noise[:, 0], noise[0]),
        "rank eight": noise[:, :8] @ noise[:8],
        "constant": np.ones((rows, cols)),
        "orthogonal": with_singular_values(rng, rows, cols, np.ones(rank)),
        "two values": with_singular_values(rng, rows, cols, np.where(np.arange(rank) % 2, 1, 0.97)),
        "three large values": with_singular_values(rng, rows, cols, np.where(np.arange(rank) < 3, 1, 0.01)),
        "1 to 1e-5": with_singular_values(rng, rows, cols, 10 ** -rng.uniform(0, 5, rank)),
        "one large entry": noise + spike,
        "zero rows": noise * (np.arange(rows) % 2)[:, None],
        "near-duplicate rows": noise[:1] + 1e-3 * noise,
        "Hilbert": 1 / (np.arange(rows)[:, None] + np.arange(cols) + 1),
        "tiny": noise * 1e-30,
        "huge": noise * 1e30,
    }


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (None, (64, 64)),
        (None, (140, 160)),
        (None, (130, 400)),
        (None, (64, 160)),
        (torch.float32, (64, 96)),
        (torch.bfloat16, (64, 64)),
        (torch.bfloat16, (64, 160)),
        (torch.float16, (32, 40)),
        (torch.float16, (32, 80)),
    ],
)
def test_no_singular_value_overshoots(dtype: torch.dtype | None, shape: tuple[int, int]) -> None:
    """In every dtype and form, at any number of steps, whatever the spectrum, no singular value ends above 1.06."""
    matrices = adversaries(*shape)
    batch = torch.from_numpy(np.stack(list(matrices.values()))).float()
    few = dtype == torch.float16 or max(shape) > 100  # these take long; Gram space begins anew after five steps
    for steps in (1, 2, 3, 4, 5, 6, 11, 20) if few else STEPS:
        update = orthogonalize(batch, resolve("robust", steps), dtype=dtype)
        largest = torch.linalg.matrix_norm(update.double(), 2)
        assert (largest <= 1.06).all(), (steps, dict(zip(matrices, largest.tolist(), strict=True)))


@pytest.mark.parametrize("shape", [(256, 1024), (512, 1600)])
def test_large_wide_matrices_do_not_overshoot(shape: tuple[int, int]) -> None:
    """Nor where the products in Gram space are computed by halves, on the spectra that strain them most."""
    matrices = adversaries(*shape)
    names = ("gaussian", "rank eight", "1 to 1e-5", "zero rows")
    batch = torch.from_numpy(np.stack([matrices[name] for name in names])).float()
    assert (torch.linalg.matrix_norm(orthogonalize(batch, ROBUST).double(), 2) <= 1.06).all()


@pytest.mark.parametrize("algorithm", ["standard", "gram"])
@pytest.mark.parametrize("steps", [5, 8, 20])
@pytest.mark.parametrize("rows", [64, 256])
def test_null_directions_stay_bounded(rows: int, steps: int, algorithm: Literal["standard", "gram"]) -> None:
    """In float32 five steps leave at most 0.005 outside the range of a rank-8 matrix; twenty, what 1.06 allows."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((rows, 8)))[0]
    matrix = left @ rng.standard_normal((8, 4 * rows))
    update = orthogonalize(
        torch.from_numpy(matrix).float(), resolve("robust", steps), dtype=torch.float32, algorithm=algorithm
    ).double()
    outside = update.numpy() - left @ (left.T @ update.numpy())
    assert np.linalg.norm(outside, 2) <= (5e-3 if steps == 5 else 1.06)


@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 12])
@pytest.mark.parametrize("shape", [(16, 16), (16, 70), (300, 40), (270, 300)])
def test_both_forms_are_one_polynomial(shape: tuple[int, int], steps: int, normalization: Normalization) -> None:
    """In float64 Gram space gives what steps on the matrix itself give, restarts included."""
    matrix, triples = random(*shape, dtype=torch.float64), resolve("robust", steps)
    in_gram_space = orthogonalize(matrix, triples, normalization=normalization, algorithm="gram")
    standard = orthogonalize(matrix, triples, normalization=normalization, algorithm="standard")
    torch.testing.assert_close(in_gram_space, standard, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(24, 30), (24, 60), (60, 24), (130, 140)])
def test_the_default_is_close_to_float64(shape: tuple[int, int]) -> None:
    """Mixed precision and Gram space move the update of a Gaussian by at most 0.03 of its norm, float32 by 1e-4."""
    matrix = random(*shape)
    exact = orthogonalize(matrix.double(), ROBUST)
    for dtype in (None, torch.float32):
        update = orthogonalize(matrix, ROBUST, dtype=dtype)
        error = torch.linalg.norm(update.double() - exact) / torch.linalg.norm(exact)
        assert error <= (1e-4 if update.dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(16, 24), (16, 40), (130, 140)])
@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
def test_coefficients_may_come_in_a_tensor(
    normalization: Normalization, shape: tuple[int, int], dtype: torch.dtype | None
) -> None:
    """A (K, 3) tensor gives the update of the same numbers in a list, to the rounding of the products."""
    matrix = random(*shape)
    expected = orthogonalize(matrix, ROBUST, normalization=normalization, dtype=dtype)
    tensor = torch.tensor(ROBUST, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    update = orthogonalize(matrix, tensor, normalization=normalization, dtype=dtype)
    assert update.dtype == expected.dtype
    atol = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[update.dtype]
    torch.testing.assert_close(update, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "shape", [(16, 24), (24, 16), (32, 128), (64, 64), (128, 128), (130, 300), (256, 256), (256, 1024)]
)
@pytest.mark.usefixtures("one_thread")
def test_no_bit_depends_on_the_rest_of_the_batch(shape: tuple[int, int]) -> None:
    """On one thread a matrix has the same update alone, among three and among seven, wherever it stands."""
    batch = random(7, *shape)
    for dtype in (None, torch.float32, torch.bfloat16):
        together = orthogonalize(batch, ROBUST, dtype=dtype)
        assert torch.equal(orthogonalize(batch[:1].clone(), ROBUST, dtype=dtype), together[:1])
        assert torch.equal(orthogonalize(batch[4:].clone(), ROBUST, dtype=dtype), together[4:])


@pytest.mark.parametrize("kind", ["floats", "tensor"])
@pytest.mark.parametrize("shape", [(2, 16, 24), (2, 140, 130), (1, 260, 520)])
def test_it_compiles_as_one_graph(shape: tuple[int, int, int], kind: str) -> None:
    """Nothing in it depends on the values of a tensor: it traces whole, and the graph gives the same update."""
    matrix = random(*shape)
    coefficients = torch.tensor(ROBUST) if kind == "tensor" else ROBUST
    compiled = torch.compile(orthogonalize, fullgraph=True, backend="eager")
    expected = orthogonalize(matrix, coefficients)
    atol = 1e-4 if expected.dtype == torch.float32 else 0.03
    torch.testing.assert_close(compiled(matrix, coefficients), expected, rtol=0, atol=atol)
    torch._dynamo.reset()


@pytest.mark.parametrize("normalization", ["schatten8", "frobenius"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (2, 3, 8, 30), (130, 140)])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.float16])
def test_it_hands_out_its_first_products(
    dtype: torch.dtype | None, shape: tuple[int, ...], normalization: Normalization
) -> None:
    """A is scale² B Bᵀ on the short side, and A² its square, where the normalization needs it."""
    matrix = 1e5 * random(*shape)
    result = newton_schulz(matrix, ROBUST, normalization=normalization, dtype=dtype)
    wide = matrix.double() if shape[-2] <= shape[-1] else matrix.double().mT
    assert result.gram is not None
    assert result.scale is not None
    assert result.scale.shape == (*shape[:-2], 1, 1)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}
    exact = result.scale.double() ** 2 * wide @ wide.mT
    limit = tolerance[result.gram.dtype] * float(exact.abs().max())
    torch.testing.assert_close(result.gram.double(), exact, rtol=0, atol=limit)
    if normalization == "frobenius":
        assert result.gram_squared is None
    else:
        assert result.gram_squared is not None
        limit = tolerance[result.gram_squared.dtype] * float((exact @ exact).abs().max())
        torch.testing.assert_close(result.gram_squared.double(), exact @ exact, rtol=0, atol=limit)


def test_an_empty_matrix_has_no_products() -> None:
    """Where there is nothing to multiply, there is nothing to hand out."""
    result = newton_schulz(torch.zeros(3, 0, 4), ROBUST)
    assert (result.gram, result.gram_squared, result.scale) == (None, None, None)


@pytest.mark.parametrize(
    ("m", "dtype"),
    [
        *product([5, 513], [torch.float32, torch.float64, torch.bfloat16]),
        *((1030, dtype) for dtype in (torch.float32, torch.bfloat16)),
        pytest.param(1030, torch.float64, marks=pytest.mark.long),
    ],
)
def test_symmetric_products_are_products(m: int, dtype: torch.dtype) -> None:
    """Block by block or whole, X Xᵀ and b A + c A² are what they are called."""
    X = random(2, m, 40, dtype=dtype) / 40**0.5
    A = gram(X)
    exact = X.double() @ X.double().mT
    limit = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(A.double(), exact, rtol=limit, atol=limit)
    G = polynomial(A, 0.5, -0.25)
    exact = 0.5 * A.double() - 0.25 * A.double() @ A.double()
    bound = limit * float(exact.abs().max())
    torch.testing.assert_close(G.double(), exact, rtol=0, atol=bound)
    scalars = torch.tensor(0.5), torch.tensor(-0.25)
    torch.testing.assert_close(polynomial(A, *scalars).double(), exact, rtol=0, atol=bound)
    mixed = combination(A, square(A), scalars[0], -0.25, dtype)
    torch.testing.assert_close(mixed.double(), exact, rtol=0, atol=bound)
    torch.testing.assert_close(polynomial(A, -0.5, 0.0).double(), -0.5 * A.double(), rtol=limit, atol=0)  # a cubic step
    torch.testing.assert_close(symmetric_product(A, G).double(), A.double() @ G.double(), rtol=0, atol=40 * bound)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sides", [(1, 1), (64, 127), (64, 128), (128, 128), (256, 1024), (2048, 2048)])
def test_a_plan_takes_every_step_once(sides: tuple[int, int], dtype: torch.dtype | None, device: str) -> None:
    """Whatever the shape, the stages add up to the steps, an explicit dtype is kept, and bfloat16 is never Gram's."""
    for steps in STEPS:
        stages = plan(*sides, steps, dtype, "auto", torch.float32, device)
        assert sum(stage.steps for stage in stages) == steps
        for stage in stages:
            assert dtype is None or (stage.dtype, stage.squares) == (dtype, dtype)
            assert stage.form != "gram" or stage.dtype != torch.bfloat16
            assert stage.steps <= 5 or stage.form == "standard"


def test_bad_arguments_are_refused() -> None:
    """An unknown form, Gram space in bfloat16, and coefficients of another shape are named in the error."""
    matrix = random(4, 9)
    with pytest.raises(ValueError, match="algorithm must be one of 'auto', 'standard', 'gram', got 'fast'"):
        orthogonalize(matrix, ROBUST, algorithm="fast")
    with pytest.raises(ValueError, match="algorithm must not be 'gram' with products in torch.bfloat16"):
        orthogonalize(matrix, ROBUST, dtype=torch.bfloat16, algorithm="gram")
    with pytest.raises(ValueError, match="coefficients must be of shape"):
        orthogonalize(matrix, torch.zeros(5))
    with pytest.raises(ValueError, match="normalization must be one of"):
        orthogonalize(matrix, ROBUST, normalization="nuclear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_known_largest_entry_changes_no_bit(dtype: torch.dtype) -> None:
    """What a base is clamped at is its largest magnitude: given, it saves passes and gives the same update."""
    generator = torch.Generator().manual_seed(5)
    M = (torch.randn(3, 24, 40, generator=generator) * torch.tensor([1e-30, 1.0, 1e30]).view(-1, 1, 1)).to(dtype)
    epsilon = threshold(M, 0.9)
    base = split(M, epsilon)
    assert torch.equal(base.abs().amax((-2, -1)), epsilon)
    given, found = (newton_schulz(base, ROBUST, largest=largest) for largest in (epsilon, None))
    assert torch.equal(given.update, found.update)
    assert given.scale is not None
    assert found.scale is not None
    assert torch.equal(given.scale, found.scale)
