from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.coefficients.tables import Normalization, resolve
from tests.optim.reference import newton_schulz, polar_error, with_singular_values
from tests.optim.training import orthogonalize

NORMALIZATIONS: list[Normalization] = ["schatten8", "frobenius"]
ROBUST = resolve("robust")

# By default these take the standard form in float32, Gram space, and, on a CPU with bfloat16 units, the mixed form.
SHAPES = [(24, 40), (24, 60), (130, 140)]


@pytest.mark.parametrize("cols", [512, 768, 2048, 4096])
def test_gaussian_matrices_come_close_to_their_polar_factor(cols: int) -> None:
    """Five steps leave a polar error of at most 0.05; Muon's leave 0.15 to 0.19."""
    matrix = np.random.default_rng(cols).standard_normal((512, cols))
    update = orthogonalize(torch.from_numpy(matrix).float(), ROBUST)
    assert polar_error(matrix, update.double().numpy()) <= 0.05


@pytest.mark.parametrize("cols", [512, 768])
def test_four_steps_are_close_on_gaussian_matrices(cols: int) -> None:
    """The dedicated four-step set leaves at most 0.09."""
    matrix = np.random.default_rng(cols).standard_normal((512, cols))
    update = orthogonalize(torch.from_numpy(matrix).float(), resolve("robust", 4))
    assert polar_error(matrix, update.double().numpy()) <= 0.09


@pytest.mark.parametrize("cols", [512, 768, 2048])
def test_spread_spectra_come_close_too(cols: int) -> None:
    """With singular values from 1 to 1e-3 the polar error is at most 0.13; Muon's is 0.44."""
    rng = np.random.default_rng(cols)
    matrix = with_singular_values(rng, 512, cols, 10 ** -rng.uniform(0, 3, 512))
    update = orthogonalize(torch.from_numpy(matrix).float(), ROBUST)
    assert polar_error(matrix, update.double().numpy()) <= 0.13


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["robust", "muon", "paper"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16), (1, 9), (9, 1), (1, 1)])
def test_it_is_the_polynomial_of_the_singular_values(
    shape: tuple[int, int], name: str, normalization: Normalization
) -> None:
    """In float64 the matrix products agree with the polynomial applied to the SVD."""
    matrix = np.random.default_rng(0).standard_normal(shape)
    triples = resolve(name, 5, shape)
    update = orthogonalize(torch.from_numpy(matrix), triples, normalization=normalization)
    assert update.dtype == torch.float64
    np.testing.assert_allclose(update.numpy(), newton_schulz(matrix, triples, normalization), atol=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-8, 1e8, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_does_not_matter(dtype: torch.dtype, scale: float, normalization: Normalization) -> None:
    """From 1e-30 to 1e30 the update is that of the unscaled matrix, to the rounding of the scaling itself."""
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrix, ROBUST, normalization=normalization, dtype=dtype)
    update = orthogonalize(matrix * scale, ROBUST, normalization=normalization, dtype=dtype)
    # Five steps multiply the smallest singular values, rounding included, by several hundred.
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_powers_of_two_do_not_change_a_bit(shape: tuple[int, int], normalization: Normalization) -> None:
    """Scaling by a power of two rounds nothing anywhere, whatever the form and the precision of the steps."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrix, ROBUST, normalization=normalization)
    for exponent in (-100, -1, 100):
        assert torch.equal(orthogonalize(matrix * 2.0**exponent, ROBUST, normalization=normalization), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_gives_zero(shape: tuple[int, int], dtype: torch.dtype | None, normalization: Normalization) -> None:
    """A zero matrix gives exactly zero, and does not disturb its neighbour in the batch."""
    batch = torch.zeros(2, *shape)
    batch[1] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalize(batch, ROBUST, normalization=normalization, dtype=dtype)
    assert torch.equal(update[0], torch.zeros_like(update[0]))
    torch.testing.assert_close(update[1], orthogonalize(batch[1], ROBUST, normalization=normalization, dtype=dtype))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_below_eps_the_update_fades(normalization: Normalization) -> None:
    """A norm a thousandth of eps gives an update of about a thousandth, times the slope at zero, not a full one."""
    matrix = torch.eye(4) * 1e-15
    update = orthogonalize(matrix, [(1.0, 0.0, 0.0)], normalization=normalization, eps=2e-12)
    full = orthogonalize(matrix, [(1.0, 0.0, 0.0)], normalization=normalization)
    torch.testing.assert_close(update, full / 1000)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 4), (2, 0, 4)])
def test_empty_matrices_stay_empty(shape: tuple[int, ...]) -> None:
    """An empty matrix gives an empty update."""
    assert orthogonalize(torch.zeros(shape), ROBUST).shape == shape


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_non_finite_stays_visible(shape: tuple[int, int], poison: float, normalization: Normalization) -> None:
    """One NaN or Inf makes its own matrix NaN and leaves the others of the batch alone."""
    batch = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(batch, ROBUST, normalization=normalization)[1]
    batch[0, 2, 3] = poison
    update = orthogonalize(batch, ROBUST, normalization=normalization)
    assert update[0].isnan().all()
    assert torch.equal(update[1], expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (20, 12), (16, 16)])
def test_transposed_input_gives_transposed_update(shape: tuple[int, int], normalization: Normalization) -> None:
    """The update of Mᵀ is the transpose of the update of M, to rounding, which the five steps magnify."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalize(matrix, ROBUST, normalization=normalization)
    transposed = orthogonalize(matrix.mT, ROBUST, normalization=normalization).mT
    torch.testing.assert_close(transposed, update, rtol=0, atol=_atol(update))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_batch_equals_a_loop(normalization: Normalization) -> None:
    """Every matrix of a batch, of any number of batch dimensions, gets the update it would get alone."""
    for shape in [(24, 16), *SHAPES]:
        batch = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        update = orthogonalize(batch, ROBUST, normalization=normalization)
        assert update.shape == batch.shape
        for i in range(2):
            for j in range(3):
                alone = orthogonalize(batch[i, j], ROBUST, normalization=normalization)
                torch.testing.assert_close(update[i, j], alone, rtol=0, atol=_atol(update))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_are_close(dtype: torch.dtype) -> None:
    """Products in half precision stay within 0.06 of the polar factor on a Gaussian, also at a norm float16 lacks."""
    matrix = np.random.default_rng(0).standard_normal((256, 1024))
    update = orthogonalize(torch.from_numpy(matrix * 1e10).float(), ROBUST, dtype=dtype)
    assert polar_error(matrix, update.double().numpy()) <= 0.06


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_input_is_left_alone(dtype: torch.dtype, normalization: Normalization) -> None:
    """Not a bit of the input changes, and the result shares no memory with it."""
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = matrix.clone()
    update = orthogonalize(matrix, ROBUST, normalization=normalization, dtype=dtype)
    update.zero_()
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_strides_do_not_matter(shape: tuple[int, int]) -> None:
    """A sliced and transposed view gives the update of its contiguous copy."""
    rows, cols = shape
    view = torch.randn(2 * cols, 3 * rows, generator=torch.Generator().manual_seed(0))[::2, ::3].mT
    update = orthogonalize(view, ROBUST)
    torch.testing.assert_close(orthogonalize(view.contiguous(), ROBUST), update, rtol=0, atol=_atol(update))


def _atol(update: torch.Tensor) -> float:
    return 1e-4 if update.dtype == torch.float32 else 0.03
