"""Numbers for people: 18,240 · 3.1e-4 · every 10. Never 0.00031000001."""

from __future__ import annotations

import math


def count(number: int) -> str:
    """Write a whole number with its thousands apart: 18,240."""
    return f"{number:,}"


def value(number: float, digits: int = 3) -> str:
    """Write a measured number in few significant digits: 0.012, 4.2, 18,240, 3.1e-4."""
    if math.isnan(number):
        return "not recorded"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
        text = f"{number:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{number:.{digits - 2}e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def plural(number: int, noun: str, many: str = "") -> str:
    """Write a count with its noun: 1 matrix, 24 matrices."""
    return f"{count(number)} {noun if number == 1 else many or noun + 's'}"


def every(steps: int) -> str:
    """Write how often a kind is recorded: every step, every 10."""
    return "every step" if steps == 1 else f"every {count(steps)}"
