"""Recorded steps, written short: the browser walks through them without the server."""

from __future__ import annotations

from root_dash.records import IntArray


def stretches(steps: IntArray) -> list[list[int]]:
    """Return ascending steps as stretches of one interval: `[first, last, interval]` of each, in order."""
    found: list[list[int]] = []
    for step in steps.tolist():
        if found:
            stretch = found[-1]
            if stretch[0] == stretch[1]:
                stretch[1:] = [step, step - stretch[0]]
                continue
            if step - stretch[1] == stretch[2]:
                stretch[1] = step
                continue
        found.append([step, step, 1])
    return found
