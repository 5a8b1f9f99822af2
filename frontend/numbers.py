"""Numbers for people: 18,240 · 1.2 s ago · 0.4 % · 3.1e-4. Never 0.00031000001."""

from __future__ import annotations

import math

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def count(number: int) -> str:
    """A whole number with its thousands apart: 18,240."""
    return f"{number:,}"


def value(number: float, digits: int = 3) -> str:
    """A measured number in few significant digits: 0.012, 4.2, 18,240, 3.1e-4."""
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


def share(fraction: float) -> str:
    """A fraction in per cent: 0.4 %."""
    return f"{value(100 * fraction, 2)} %"


def ago(seconds: float) -> str:
    """How long ago something was: 1.2 s ago, 5 min ago, 3 h ago."""
    seconds = max(0.0, seconds)
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.1f} s ago" if seconds < 9.95 else f"{seconds:.0f} s ago"


def plural(number: int, noun: str, many: str = "") -> str:
    """A count with its noun: 1 matrix, 24 matrices."""
    return f"{count(number)} {noun if number == 1 else many or noun + 's'}"


def every(steps: int) -> str:
    """How often something is recorded: every step, every 10."""
    return "every step" if steps == 1 else f"every {count(steps)}"
