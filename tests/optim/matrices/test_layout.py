from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from root_dash.optim.matrices.layout import Layout, pieces, viewable

CASES = [
    ((4, 6), {}),
    ((8, 3, 3, 3), {}),
    ((4, 6, 5), {"batch_ndim": 1}),
    ((2, 3, 4, 5), {"batch_ndim": 2}),
    ((2, 4, 3, 5), {"batch_ndim": 1}),
    ((12, 4), {"split_sizes": (4, 4, 4)}),
    ((8, 4), {"split_sizes": (4, 2, 2)}),
    ((8, 4), {"num_heads": 4}),
    ((12, 4), {"split_sizes": (4, 4, 4), "num_heads": 2}),
    ((12, 4), {"split_sizes": (8, 2, 2), "num_heads": (4, 1, 1)}),
    ((3, 12, 4), {"batch_ndim": 1, "split_sizes": (8, 4), "num_heads": (2, 1)}),
    ((0, 4), {}),
    ((4, 0), {"num_heads": 2}),
    ((0, 4, 5), {"batch_ndim": 1}),
    ((0, 4, 5), {"batch_ndim": 1, "num_heads": 2}),
    ((3, 0, 5), {"batch_ndim": 1, "num_heads": 2}),
]


def numbered(*shape: int) -> Tensor:
    return torch.arange(prod(shape), dtype=torch.float64).reshape(shape)


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[Tensor, Layout]:
    """Draw a tensor of any strides, with a layout that fits it."""
    batch = draw(st.lists(st.integers(0, 3), max_size=2))
    heads = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    sizes = [count * draw(st.integers(1, 3)) for count in heads]
    shape = [*batch, sum(sizes), *draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))]
    order = draw(st.permutations(range(len(shape))))
    tensor = torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(shape))])
    assert list(tensor.shape) == shape
    return tensor, Layout(len(batch), tuple(sizes), tuple(heads))


def by_numpy(values: np.ndarray[Any, Any], layout: Layout) -> list[np.ndarray[Any, Any]]:
    """Return the matrices as NumPy cuts them, in the order of the options."""
    k = layout.batch_ndim
    matrices, rows, cols = prod(values.shape[:k]), values.shape[k], prod(values.shape[k + 1 :])
    sizes = layout.split_sizes or (rows,)
    heads = layout.num_heads if isinstance(layout.num_heads, tuple) else (layout.num_heads or 1,) * len(sizes)
    return [
        head
        for matrix in values.reshape(matrices, rows, cols)
        for block, count in zip(np.split(matrix, np.cumsum(sizes)[:-1]), heads, strict=True)
        for head in np.split(block, count)
    ]


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_pieces_are_the_matrices_of_the_parameter(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """The pieces have NumPy's values, order and shapes, and together they are the parameter."""
    parameter, layout = nn.Parameter(numbered(*shape)), Layout.of(options)
    found = pieces(parameter, layout)
    expected = by_numpy(parameter.detach().numpy(), layout)
    assert [tuple(piece.shape) for piece in found] == layout.shapes(parameter.shape) == [e.shape for e in expected]
    for piece, matrix in zip(found, expected, strict=True):
        np.testing.assert_array_equal(piece.detach().numpy(), matrix)
    if found:
        torch.testing.assert_close(torch.cat(found).reshape(shape), parameter.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_writing_to_the_pieces_writes_the_parameter(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Contiguous parameters are cut into views, which cover each element once."""
    parameter, layout = nn.Parameter(numbered(*shape)), Layout.of(options)
    assert viewable(parameter, layout)
    with torch.no_grad():
        for piece in pieces(parameter, layout):
            piece.add_(1000)
    torch.testing.assert_close(parameter.detach(), numbered(*shape) + 1000, rtol=0, atol=0)


@given(cut_tensors())
def test_viewable_tells_whether_the_pieces_are_views(case: tuple[Tensor, Layout]) -> None:
    """For any shape and strides, writing to the pieces changes the tensor if and only if `viewable` is True."""
    tensor, layout = case
    tensor.zero_()
    found = pieces(tensor, layout)
    assert [tuple(piece.shape) for piece in found] == layout.shapes(tensor.shape)
    for piece in found:
        piece.add_(1)
    assert tensor.sum().item() == (tensor.numel() if viewable(tensor, layout) else 0)


def test_a_channels_last_kernel_is_copied() -> None:
    """The pieces of a channels-last kernel have the right values, and `viewable` says that they are copies."""
    kernel = numbered(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert not viewable(kernel, Layout())
    (piece,) = pieces(kernel, Layout())
    torch.testing.assert_close(piece, numbered(4, 12), rtol=0, atol=0)


def test_a_transposed_matrix_is_viewed() -> None:
    """A matrix needs no flattening: it is cut into views whatever its strides, also in a stack."""
    assert viewable(numbered(6, 4).T, Layout(num_heads=2))
    assert viewable(numbered(3, 6, 4).mT, Layout(batch_ndim=1))
    assert not viewable(numbered(3, 6, 4).mT, Layout())


def test_a_group_gives_its_layout() -> None:
    """Missing options have their defaults, lists count as tuples, and `options` gives the options back."""
    assert Layout.of({"lr": 0.1}) == Layout() == Layout(0, None, None)
    layout = Layout.of({"batch_ndim": 1, "split_sizes": [4, 2, 2], "num_heads": [2, 1, 1]})
    assert layout == Layout(1, (4, 2, 2), (2, 1, 1))
    assert Layout.of(layout.options()) == layout
    assert Layout().options() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_ndim": -1}, "batch_ndim must be an integer of at least 0, got -1"),
        ({"batch_ndim": True}, "batch_ndim must be an integer of at least 0, got True"),
        ({"batch_ndim": 1.0}, "batch_ndim must be an integer of at least 0, got 1.0"),
        ({"split_sizes": ()}, "split_sizes must be integers of at least 1, or None, got ()"),
        ({"split_sizes": [4, 0]}, "split_sizes must be integers of at least 1, or None, got (4, 0)"),
        ({"split_sizes": "44"}, "split_sizes must be integers of at least 1, or None, got '44'"),
        ({"num_heads": 0}, "num_heads must be an integer of at least 1, one per block, or None, got 0"),
        ({"num_heads": (2, 0)}, "num_heads must be an integer of at least 1, one per block, or None, got (2, 0)"),
        ({"num_heads": (2, 1)}, "num_heads must have one number per block of split_sizes, 1, got (2, 1)"),
        (
            {"split_sizes": (4, 2, 2), "num_heads": (2, 1)},
            "num_heads must have one number per block of split_sizes, 3, got (2, 1)",
        ),
    ],
)
def test_options_that_fit_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    """The error names the option, the rule and the value."""
    wrong_type = any(isinstance(value, bool | float | str) for value in options.values())
    with pytest.raises(TypeError if wrong_type else ValueError, match=f"^{re.escape(message)}$"):
        Layout.of(options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {}, "batch_ndim must leave 2 dimensions to the matrix, got 0"),
        ((4, 4), {"batch_ndim": 1}, "batch_ndim must leave 2 dimensions to the matrix, got 1"),
        ((96, 4), {"split_sizes": (32, 32)}, "split_sizes must sum to the rows of the matrix, 96, got (32, 32)"),
        ((9, 4), {"num_heads": 2}, "num_heads must divide the rows of its block, 9, got 2"),
        (
            (9, 4),
            {"split_sizes": (4, 5), "num_heads": (2, 2)},
            "num_heads must divide the rows of its block, 5, got (2, 2)",
        ),
    ],
)
def test_a_parameter_that_cannot_be_cut_is_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    """The error names the option, the rule, the value, the shape and, if known, the parameter."""
    layout = Layout.of(options)
    with pytest.raises(ValueError, match=f"^{re.escape(message)} for parameter 'a.weight' of shape"):
        layout.check(torch.Size(shape), "a.weight")
    with pytest.raises(ValueError, match=f"^{re.escape(message)} for shape {re.escape(str(shape))}$"):
        layout.shapes(torch.Size(shape))
