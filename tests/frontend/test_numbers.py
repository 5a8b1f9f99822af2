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
    """Three significant digits, thousands apart, powers of ten only where they are shorter."""
    assert numbers.value(number) == text


def test_counts_shares_and_plurals_read_as_words() -> None:
    """Counts with their thousands apart, fractions in per cent, nouns in the right number."""
    assert numbers.count(18240) == "18,240"
    assert numbers.share(0.004) == "0.4 %"
    assert numbers.plural(1, "matrix", "matrices") == "1 matrix"
    assert numbers.plural(1240, "frame") == "1,240 frames"
    assert [numbers.every(steps) for steps in (1, 1000)] == ["every step", "every 1,000"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s ago"),
        (1.23, "1.2 s ago"),
        (9.96, "10 s ago"),
        (59, "59 s ago"),
        (300, "5 min ago"),
        (7200, "2 h ago"),
    ],
)
def test_ages_take_the_largest_unit(seconds: float, text: str) -> None:
    """An age is said in the unit that keeps it short, and never negative."""
    assert numbers.ago(seconds) == text
