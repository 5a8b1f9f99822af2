"""The Q-Q plot: a tensor's quantiles against the quantiles of the normal distribution. Look at the tails."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import plotly.graph_objects as go

from root_dash.frontend import theme as colours
from root_dash.frontend.figures import base
from root_dash.frontend.theme import Theme
from root_dash.records import Float64Array, Quantiles, quantile_positions, quantile_probabilities

FAR = 1.0
"""Standard deviations between a quantile and the normal's quantile from which on a point is vermilion."""
Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class Points:
    """Standardized quantiles at normal positions, and the band of a normal sample's quantiles."""

    position: Float64Array
    observed: Float64Array
    low: Float64Array
    high: Float64Array

    @property
    def far(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which points are more than `FAR` standard deviations from the normal's quantiles."""
        far: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.abs(self.observed - self.position) > FAR
        return far


def qq(
    recorded: Quantiles | None,
    theme: Theme,
    *,
    mean: float = np.nan,
    deviation: float = np.nan,
    before: Points | None = None,
    sentence: str = "",
) -> go.Figure:
    """Draw standardized quantiles against the normal's, with the dashed diagonal and the 95 % band in grey.

    Points far from the diagonal are vermilion: see `FAR`. `before` are the layer's own points at an earlier step, drawn
    in grey. `sentence` says why there are no points.
    """
    if recorded is None:
        return base.empty(theme, "qq", "No quantiles at this step: watch() records quantiles with the histograms.")
    points = standardized(recorded, mean, deviation)
    if points is None:
        equal = "No quantiles to standardize: the entries are all equal or not finite."
        return base.empty(theme, "qq", sentence or equal, sick=bool(sentence))
    drawn = base.figure(theme, "qq")
    drawn.add_scatter(
        x=np.concatenate([points.position, points.position[::-1]]),
        y=np.concatenate([points.high, points.low[::-1]]),
        mode="lines", line={"width": 0}, fill="toself", fillcolor=theme.band, hoverinfo="skip",
    )  # fmt: skip
    ends = [float(points.position[0]), float(points.position[-1])]
    drawn.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": theme.ink, "width": 1.2, "dash": "dash"}, hoverinfo="skip"
    )
    if before is not None:
        drawn.add_scatter(
            x=before.position, y=before.observed, mode="markers", name="before", opacity=0.55,
            marker={"size": 4, "color": theme.grey}, hovertemplate="before: %{y:.2f} σ<extra></extra>",
        )  # fmt: skip
    drawn.add_scatter(
        x=points.position, y=points.observed, mode="markers", name="now",
        marker={"size": 5, "color": np.where(points.far, colours.VERMILION, colours.BLUE)},
        customdata=points.observed - points.position,
        hovertemplate="normal %{x:.2f} σ, here %{y:.2f} σ: %{customdata:+.2f} σ<extra></extra>",
    )  # fmt: skip
    drawn.update_layout(
        xaxis={"title": {"text": "normal quantile, σ"}, "nticks": 6, "tickformat": "~g"},
        yaxis={"title": {"text": "observed, σ"}, "nticks": 6, "tickformat": "~g"},
    )
    return drawn


def standardized(recorded: Quantiles, mean: float, deviation: float) -> Points | None:
    """Return the points and their band; None if the quantiles cannot be standardized.

    A quantile further out than the sample has entries (n p < 1/2) only repeats an extreme and is left out. The band
    is Wilson's interval of the probability, mapped by the normal's quantile function.
    """
    if recorded.count < 2 or not (np.isfinite(mean) and deviation > 0):
        return None
    p = quantile_probabilities()
    observed = (np.asarray(recorded.values, np.float64) - mean) / deviation
    kept = (recorded.count * np.minimum(p, 1 - p) >= 0.5) & np.isfinite(observed)
    if not kept.any():
        return None
    low, high = band(p[kept], recorded.count)
    return Points(quantile_positions()[kept], observed[kept], low, high)


def band(probabilities: Float64Array, count: int) -> tuple[Float64Array, Float64Array]:
    """Return the bounds between which 95 % of normal samples of `count` entries have their quantile."""
    ratio = Z95**2 / count
    centre = (probabilities + ratio / 2) / (1 + ratio)
    half = Z95 / (1 + ratio) * np.sqrt(probabilities * (1 - probabilities) / count + ratio / (4 * count))
    normal = NormalDist()
    inverse = np.vectorize(lambda q: normal.inv_cdf(min(max(q, 1e-12), 1 - 1e-12)), otypes=[np.float64])
    return inverse(centre - half), inverse(centre + half)
