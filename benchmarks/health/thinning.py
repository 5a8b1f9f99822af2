"""Thin a recording of every step as a recorder thins it, sentinels included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from root_dash.records import Frame, statistic_names

SENTINELS = (
    "nonfinite_steps", "nonfinite_step", "norm_peak", "norm_peak_step", "norm_trough", "norm_trough_step",
    "entry_peak", "entry_peak_step",
)  # fmt: skip
"""What a recorder keeps of the steps between two frames: it looks at every step, whatever it records."""


def thinned(frames: Sequence[Frame], every: int, layers: int) -> list[Frame]:
    """Return each `every`-th frame, with the sentinel statistics of the steps since the frame before.

    Scalars are recorded at every step: of a step without statistics a frame with its scalars alone is left.
    """
    names = statistic_names("statistics")
    known = [name for name in SENTINELS if name in names]
    if not known:
        return [frame for frame in frames if (frame.step - 1) % every == 0]
    at = {name: names.index(name) for name in names}
    kept: list[Frame] = []
    empty = np.empty((0, len(names)), np.float32)
    now = {name: np.full(layers, np.nan) for name in SENTINELS}
    with np.errstate(invalid="ignore"):
        for frame in frames:
            table, step, i = frame.statistics, frame.step, frame.layers
            norm, entry = table[:, at["grad_norm"]].astype(float), table[:, at["grad_abs_max"]].astype(float)
            finite = np.isfinite(norm) & (table[:, at["grad_nan"]] + table[:, at["grad_inf"]] == 0)
            now["nonfinite_steps"][i] = np.nan_to_num(now["nonfinite_steps"][i]) + ~finite
            first = i[~finite & np.isnan(now["nonfinite_step"][i])]
            now["nonfinite_step"][first] = step
            for name, values, beats in (
                ("norm_peak", norm, np.greater), ("norm_trough", norm, np.less), ("entry_peak", entry, np.greater),
            ):  # fmt: skip
                better = finite & (np.isnan(now[name][i]) | beats(values, now[name][i]))
                now[name][i[better]] = values[better]
                now[f"{name}_step"][i[better]] = step
            if (step - 1) % every:
                kept.append(Frame(frame.seq, step, frame.time, i[:0], empty, scalars=frame.scalars))
                continue
            table = table.copy()
            for name in known:
                table[:, at[name]] = now[name][i]
                now[name][:] = np.nan
            kept.append(
                Frame(
                    frame.seq, step, frame.time, i, table, spectra=frame.spectra, masks=frame.masks,
                    scalars=frame.scalars,
                )
            )  # fmt: skip
    return kept
