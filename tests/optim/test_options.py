"""Tests of the options that ROOT refuses, and of the error messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from root_dash.optim import ROOT
from tests.optim.training import give_gradients, parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and at least 0, got -1.0"),
        ({"lr": torch.ones(2)}, "lr must be a number or a tensor of one element, got a tensor of shape (2,)"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0, got -0.1"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        (
            {"ns_coefficients": "fast"},
            "ns_coefficients must be one of 'adaptive', 'robust', 'adanewton', 'paper', ",
        ),
        ({"ns_steps": 0}, "ns_steps must be a whole number of at least 1, got 0"),
        ({"ns_coefficients": "paper", "ns_steps": 6}, "ns_steps must be 5 with ns_coefficients='paper', got 6"),
        ({"eps": 0.0}, "eps must be finite and more than 0, got 0.0"),
        ({"adjust_lr_fn": "rms"}, "adjust_lr_fn must be one of 'match_rms_adamw', 'original', 'spectral', "),
        ({"outlier_quantile": 0.0}, "outlier_quantile must be in (0, 1], got 0.0"),
        ({"outlier_quantile": 1.5}, "outlier_quantile must be in (0, 1], got 1.5"),
        ({"outlier_quantile": float("nan")}, "outlier_quantile must be in (0, 1], got nan"),
        ({"normalization": "rows"}, "normalization must be one of 'schatten8', 'frobenius', got 'rows'"),
        ({"ns_dtype": torch.int8}, "ns_dtype must be a floating-point torch.dtype or None, got torch.int8"),
        ({"outlier_threshold": -1.0}, "outlier_threshold must be None, or finite and at least 0, got -1.0"),
        ({"quantile_method": "guess"}, "quantile_method must be one of 'exact', 'histogram', 'sampled', got 'guess'"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of 'propagate', 'skip', 'raise', got 'ignore'"),
        ({"batch_ndim": -1}, "batch_ndim must be an integer of at least 0, got -1"),
        ({"batch_ndim": 1}, "batch_ndim must leave 2 dimensions to the matrix, got 1"),
        ({"split_sizes": (3, 4)}, "split_sizes must sum to the rows of the matrix, 12, got (3, 4)"),
        ({"num_heads": 5}, "num_heads must divide the rows of its block, 12, got 5"),
        ({"calibrate_every": -1}, "calibrate_every must be a whole number, 0 or more, got -1"),
        ({"calibrate_every": 1.5}, "calibrate_every must be a whole number, 0 or more, got 1.5"),
        ({"calibration_mixture": (0, 0)}, "calibration_mixture must be a pair of weights (real, random)"),
        (
            {"outlier_quantile": lambda step: 0.9, "capturable": True},
            "outlier_quantile must be a number with capturable=True",
        ),
        ({"nonfinite": "raise", "capturable": True}, "nonfinite must not be 'raise' with capturable=True"),
        ({"betas": (0.9, 1.0)}, "betas must be a pair of numbers in [0, 1), got (0.9, 1.0)"),
        ({"adamw_eps": -1e-8}, "adamw_eps must be finite and at least 0, got -1e-08"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """In the constructor and in a group alike, the error names the argument, the rule and the value."""
    for build in (lambda: ROOT(parameters(), **options), lambda: ROOT([{"params": parameters(), **options}])):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build()  # type: ignore[no-untyped-call]
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "fast"}, "lr must be finite and at least 0, got 'fast'"),
        ({"momentum": None}, "momentum must be in [0, 1), got None"),
        ({"weight_decay": 1j}, "weight_decay must be finite and at least 0, got 1j"),
        ({"outlier_quantile": "0.9"}, "outlier_quantile must be in (0, 1], got '0.9'"),
        ({"betas": 0.9}, "betas must be a pair of numbers in [0, 1), got 0.9"),
        ({"ns_steps": 2.5}, "ns_steps must be a whole number of at least 1, got 2.5"),
        ({"ns_coefficients": None}, "ns_coefficients must be a name, (a, b, c), or a list of them, got None"),
        ({"ns_coefficients": (None, None, None)}, "ns_coefficients must be made of triples of numbers (a, b, c)"),
        ({"adjust_lr_fn": 1}, "adjust_lr_fn must be one of 'match_rms_adamw', 'original', 'spectral', "),
        ({"normalization": 8}, "normalization must be one of 'schatten8', 'frobenius', got 8"),
        ({"quantile_method": 0}, "quantile_method must be one of 'exact', 'histogram', 'sampled', got 0"),
        ({"nonfinite": None}, "nonfinite must be one of 'propagate', 'skip', 'raise', got None"),
        ({"ns_dtype": "float32"}, "ns_dtype must be a floating-point torch.dtype or None, got 'float32'"),
        ({"calibrate_every": "often"}, "calibrate_every must be a whole number, 0 or more, got 'often'"),
        ({"calibration_mixture": 1.0}, "calibration_mixture must be a pair of weights (real, random)"),
        ({"batch_ndim": "1"}, "batch_ndim must be an integer of at least 0, got '1'"),
        ({"split_sizes": 6}, "split_sizes must be integers of at least 1, or None, got 6"),
        ({"num_heads": 2.0}, "num_heads must be an integer of at least 1, one per block, or None, got 2.0"),
    ],
)
def test_options_of_a_wrong_type_are_refused(options: dict[str, Any], message: str) -> None:
    """A wrong type is a TypeError, in the constructor and in a group added later, which then is not added."""
    optimizer = ROOT(parameters())
    for build in (
        lambda: ROOT(parameters(), **options),
        lambda: optimizer.add_param_group({"params": parameters(), **options}),
    ):
        with pytest.raises(TypeError) as error:
            build()
        assert message in str(error.value)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(5,), ()])
def test_vectors_are_refused(shape: tuple[int, ...]) -> None:
    """A vector in a ROOT group is an error that gives its name and shape and says where it belongs."""
    optimizer = ROOT(parameters())
    vector = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got a parameter of shape .*ROOT.param_groups"):
        optimizer.add_param_group({"params": [vector]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="got parameter 'bias' of shape"):
        ROOT([("bias", vector)])


def test_an_unknown_algorithm_is_refused() -> None:
    """The error lists the algorithms that exist."""
    with pytest.raises(ValueError, match="algorithm must be one of 'root', 'adamw', got 'sgd'"):
        ROOT([{"params": parameters(), "algorithm": "sgd"}])


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    """Both errors say what is not supported, the first at construction."""
    with pytest.raises(ValueError, match="must be real, got a parameter of dtype torch.complex64"):
        ROOT([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = ROOT([{"params": embedding.parameters(), "algorithm": "adamw"}])
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_the_papers_sets_warn() -> None:
    """Choosing the published sets says what is wrong with them."""
    with pytest.warns(UserWarning, match="diverges beyond five steps"):
        optimizer = ROOT(parameters(), ns_coefficients="paper")
    give_gradients(0, optimizer.param_groups[0]["params"])
    optimizer.step()


def test_a_schedule_out_of_range_is_refused_when_it_is_used() -> None:
    """A function that leaves its option's range is an error at that step, with the step and the value in it."""
    params = parameters()
    optimizer = ROOT(params, outlier_quantile=lambda step: 0.5 * step)
    give_gradients(0, params)
    optimizer.step()
    optimizer.step()
    with pytest.raises(ValueError, match=r"outlier_quantile\(3\) must be in \(0, 1\], got 1.5"):
        optimizer.step()
