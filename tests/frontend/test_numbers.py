"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from root_dash.frontend import numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (18240.0, "18,240"),
        (0.00031000001, "3.1e-4"),
        (3e-9, "3e-9"),
        (1.2e7, "1.2e7"),
        (0.0125, "0.0125"),
        (4.25, "4.25"),
        (-4.0, "-4"),
        (999.9, "1,000"),
        (math.nan, "not recorded"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_values_have_few_digits(number: float, text: str) -> None:
    """Values have three significant digits and thousands apart; a power of ten is written only if it is shorter."""
    assert numbers.value(number) == text


def test_counts_and_plurals_read_as_words() -> None:
    """Counts with their thousands apart, nouns in the right number."""
    assert numbers.count(18240) == "18,240"
    assert numbers.plural(1, "matrix", "matrices") == "1 matrix"
    assert numbers.plural(1240, "frame") == "1,240 frames"
    assert [numbers.every(steps) for steps in (1, 1000)] == ["every step", "every 1,000"]
