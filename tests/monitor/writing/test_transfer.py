"""Many tensors, one buffer, the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from root_dash.monitor.writing.transfer import send


def test_arrays_arrive_as_they_were_sent() -> None:
    """Every dtype and shape, empty and zero-dimensional and strided ones, bit for bit."""
    tensors = {
        "doubles": torch.randn(3, 5, dtype=torch.float64),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "strided": torch.arange(12, dtype=torch.int32).view(3, 4).T,
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "long": torch.tensor([[2**40]]),
    }
    arrived = send(tensors).wait()
    assert list(arrived) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(arrived[name], tensor.numpy())
        assert arrived[name].dtype == tensor.numpy().dtype


def test_later_writes_do_not_reach_what_was_sent() -> None:
    """The optimizer goes on with its tensors while the copy is read."""
    tensor = torch.ones(100)
    arrival = send({"x": tensor})
    tensor.zero_()
    assert arrival.wait()["x"].sum() == 100


def test_one_element_may_be_strided() -> None:
    """A threshold of a batch of one is a column of a wider tensor, and counts as contiguous all the same."""
    column = torch.tensor([[1.5, 2.5]]).unbind(1)[0]
    assert column.stride() == (2,)
    assert send({"x": column}).wait()["x"].tolist() == [1.5]


def test_nothing_arrives_of_nothing() -> None:
    """A frame of scalars alone has no tensors."""
    assert send({}).wait() == {}


def test_an_unknown_dtype_is_refused_by_name() -> None:
    """The message names the tensor, its dtype and the rule."""
    with pytest.raises(TypeError, match=r"'mask' has dtype torch.bool: must be one of"):
        send({"mask": torch.ones(2, dtype=torch.bool)})
