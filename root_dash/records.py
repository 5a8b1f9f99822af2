"""The records that travel: from the trainer to the store, and from the store to the server and the dashboard.

Frozen dataclasses of NumPy arrays, named by `root_dash.vocabulary`. Standard library and NumPy only, so that a
dashboard host needs no torch and a trainer needs no SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.vocabulary import KINDS as KINDS
from root_dash.vocabulary import STATISTICS as STATISTICS
from root_dash.vocabulary import TENSORS as TENSORS
from root_dash.vocabulary import Kind as Kind
from root_dash.vocabulary import Statistic as Statistic
from root_dash.vocabulary import TensorName as TensorName
from root_dash.vocabulary import statistic as statistic
from root_dash.vocabulary import statistic_names as statistic_names

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
CountArray = NDArray[np.uint32]

# The edges of every histogram of a run. Each octave (power of two) from 2^-48 to 2^16 is cut into four equal bins, on
# both sides of zero, as an HDR histogram does: the edges are exact in float32, a bin index is a shift of the float's
# bits, and histograms of different steps, layers and ranks add up. The middle bin holds |x| < 2^-48 and the two
# outermost ones |x| >= 2^16, so that the counts always sum to the number of finite entries.
HISTOGRAM_OCTAVES = (-48, 16)
HISTOGRAM_BINS_PER_OCTAVE = 4


@cache
def histogram_edges() -> Float64Array:
    """The 516 ascending edges of the 515 bins, from -inf to inf, symmetric about zero; read-only."""
    low, high = HISTOGRAM_OCTAVES
    steps = np.arange((high - low) * HISTOGRAM_BINS_PER_OCTAVE)
    octave, part = np.divmod(steps, HISTOGRAM_BINS_PER_OCTAVE)
    positive = np.append(np.ldexp(1.0 + part / HISTOGRAM_BINS_PER_OCTAVE, octave + low), [np.ldexp(1.0, high), np.inf])
    edges = np.concatenate([-positive[::-1], positive])
    edges.flags.writeable = False
    return edges


# Probabilities of the Q-Q plot: equidistant as quantiles of the standard normal from -4.265 (p = 1e-5) to +4.265.
QUANTILE_COUNT = 65
QUANTILE_REACH = 4.264890793922825  # the standard normal's quantile of 1 - 1e-5


@cache
def quantile_positions() -> Float64Array:
    """The 65 standard-normal quantiles at which a distribution's own quantiles are recorded; read-only."""
    positions = np.linspace(-QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT)
    positions.flags.writeable = False
    return positions


@cache
def quantile_probabilities() -> Float64Array:
    """The 65 probabilities Φ(z) of `quantile_positions`, from 1e-5 to 1 - 1e-5; read-only."""
    from statistics import NormalDist

    probabilities = np.array([NormalDist().cdf(z) for z in quantile_positions()])
    probabilities.flags.writeable = False
    return probabilities


@dataclass(frozen=True, slots=True)
class Layer:
    """One named parameter tensor of the model.

    `position` is its place in the model's order, from 0; `id` is the store's key (0 before it was stored). `algorithm`
    is `"root"`, `"adamw"`, or the lower-case name of the optimizer that steps it. `shape` is the parameter's own;
    `rows` x `cols` is the matrix it is seen as (trailing dimensions flattened; a vector is one row).
    """

    name: str
    shape: tuple[int, ...]
    algorithm: str
    position: int = 0
    id: int = 0

    @property
    def rows(self) -> int:
        """Rows of the matrix that the layer is seen as."""
        return self.shape[0] if len(self.shape) >= 2 else 1

    @property
    def cols(self) -> int:
        """Columns of the matrix that the layer is seen as."""
        return self.size // self.rows if self.rows else 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_matrix(self) -> bool:
        """Whether it has at least two rows and two columns, and so a spectrum and a mask."""
        return self.rows >= 2 and self.cols >= 2


@dataclass(frozen=True, slots=True)
class Run:
    """One training job. `id` is the store's key (0 before it was stored), `uid` is unique across stores.

    `config` is what the user passed to `watch`; `cadence` maps each kind to its interval in steps. Times are seconds
    since the epoch; `ended_at` is None while the run trains or where it died without a word.
    """

    uid: str
    name: str
    started_at: float
    config: Mapping[str, Any] = field(default_factory=dict)
    cadence: Mapping[str, int] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's class and, under ROOT, its coefficients, normalization and quantile: plain JSON values."""
    rank: int = 0
    """Of the process that recorded it, where each of several records a run of its own."""
    ended_at: float | None = None
    id: int = 0
    frames: int = 0
    lost: int = 0
    """Frames that were taken but could not be stored: counted, never hidden."""
    last_step: int | None = None
    last_time: float | None = None

    @property
    def title(self) -> str:
        """The name for people, and the rank of a process that is not the first: the runs of all bear one name."""
        name = self.name or self.uid
        return f"{name} · rank {self.rank}" if self.rank else name


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process's go at a run: its `uid` with a frame's `seq` names the frame in any store.

    `lost` counts the frames lost after the last that was stored, `last_seq` is the largest `seq` that is stored, and
    `run` is the store's key of the run.
    """

    uid: str
    started_at: float
    ended_at: float | None = None
    lost: int = 0
    pid: int = 0
    host: str = ""
    run: int = 0
    last_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a tensor's entries between fixed edges.

    `counts[i]` entries lie in `[edges[i], edges[i+1])` on the positive side and in `(edges[i], edges[i+1]]` on the
    negative one (the bins mirror each other); `counts.sum() + nan + inf` is the tensor's size.
    """

    counts: CountArray
    nan: int = 0
    inf: int = 0
    step: int = 0
    edges: Float64Array = field(default_factory=histogram_edges)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A tensor's quantiles at `quantile_probabilities()`, over its `count` finite entries.

    Linear between order statistics of the entries rounded to bfloat16, which moves each by at most 2^-9 of itself: what
    no plot shows, and sorted six times faster.
    """

    values: Float32Array
    count: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, descending, of the momentum M, its base B and the update X (empty where there is none).

    `estimated` ones are those of a large matrix by stochastic Lanczos quadrature: the largest is exact, of the others
    the distribution is what was estimated, and the smallest are too large.
    """

    momentum: Float32Array
    base: Float32Array
    update: Float32Array
    step: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Mask:
    """Where |M| > ε, in the layer's own orientation: `rows` x `cols`.

    `packed` is the exact mask, row-major, eight entries a byte as `np.packbits` does (empty where only the map was
    kept). `pooled[i, j]` counts the outliers in a block of the map of at most 64 x 64 blocks; block i covers the rows
    from `i * rows // pooled.shape[0]` up to `(i + 1) * rows // pooled.shape[0]`, columns likewise. `largest` are the
    entries of greatest |M|, `(row, col)` beside `largest_values`.
    """

    rows: int
    cols: int
    pooled: CountArray
    row_totals: CountArray
    col_totals: CountArray
    largest: IntArray
    largest_values: Float32Array
    packed: bytes = b""
    step: int = 0

    def dense(self) -> NDArray[np.bool_]:
        """The exact mask as a `rows` x `cols` array of booleans.

        Raises:
            ValueError: only the map was kept.
        """
        if not self.packed:
            raise ValueError(f"the mask at step {self.step} was kept as a map only: record it with exact masks on")
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=self.rows * self.cols)
        return bits.astype(np.bool_).reshape(self.rows, self.cols)


def outlying(totals: CountArray) -> NDArray[np.bool_]:
    """Which rows (or columns) of a mask are outliers, given the outliers in each: (n,) -> booleans (n,).

    Those that hold more than twice as many as if all rows had the same share.
    """
    outlying: NDArray[np.bool_] = totals.astype(np.int64) * totals.size > 2 * totals.sum(dtype=np.int64)
    return outlying


@dataclass(frozen=True, slots=True)
class OutlierCounts:
    """In how many of a layer's `recorded` masks, up to `step`, each row and each column was `outlying`."""

    recorded: int
    rows: CountArray
    cols: CountArray
    step: int = 0

    def rows_beyond(self, share: float = 0.5) -> IntArray:
        """The rows that were outliers in more than that share of the masks, ascending."""
        return np.flatnonzero(self.rows > share * self.recorded)

    def cols_beyond(self, share: float = 0.5) -> IntArray:
        """The columns that were outliers in more than that share of the masks, ascending."""
        return np.flatnonzero(self.cols > share * self.recorded)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run at a step, such as a new coefficient set; `id` is the store's key."""

    kind: str
    text: str
    step: int
    time: float
    id: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """All that was recorded at one step: the unit of writing, of streaming and of resuming.

    Arrays of layers are indexed by the layer's `position`. `seq` counts the attempt's frames from 0 and with the
    attempt makes the frame unique, so that storing it twice stores it once. `lost` counts the frames before this one
    that could not be kept; `cost` is the time in seconds that recording took of the training thread.
    """

    seq: int
    step: int
    time: float
    layers: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    """Positions of the layers in `statistics`, ascending."""
    statistics: Float32Array = field(
        default_factory=lambda: np.empty((0, len(statistic_names("statistics"))), np.float32)
    )
    """One row per entry of `layers`, one column per name of `statistic_names("statistics")`; NaN: not recorded."""
    histograms: Mapping[int, Mapping[TensorName, Histogram]] = field(default_factory=dict)
    quantiles: Mapping[int, Mapping[TensorName, Quantiles]] = field(default_factory=dict)
    spectra: Mapping[int, tuple[Spectrum, Mapping[str, float]]] = field(default_factory=dict)
    """With the statistics of kind `"spectra"` by name."""
    masks: Mapping[int, tuple[Mask, Mapping[str, float]]] = field(default_factory=dict)
    """With the statistics of kind `"masks"` by name."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    """What happened at the step, or since the frame before."""
    lost: int = 0
    cost: float = 0.0

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that this frame holds, in the order of `KINDS`."""
        held: dict[Kind, bool] = {
            "statistics": len(self.layers) > 0,
            "histograms": bool(self.histograms),
            "quantiles": bool(self.quantiles),
            "spectra": bool(self.spectra),
            "masks": bool(self.masks),
            "scalars": bool(self.scalars),
        }
        return tuple(kind for kind in KINDS if held[kind])


@dataclass(frozen=True, slots=True)
class Notice:
    """That a frame was stored: `id` is the cursor. What the stream carries instead of the data."""

    id: int
    run: int
    seq: int
    step: int
    time: float
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class History:
    """One statistic or scalar over the steps: `values[i]` was recorded at `steps[i]`, ascending; NaN: not recorded.

    `total` steps were recorded, of which these are all or show all extremes.
    """

    name: str
    steps: IntArray
    values: Float64Array
    total: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """One statistic of all layers over the steps.

    `values[i, j]` belongs to `layers[i]` and to the steps from `starts[j]` to `ends[j]`, both included: the value of
    largest magnitude recorded in that bucket; NaN where nothing was. `shown` of `total` recorded steps are columns
    of their own or share one: `total > shown` means that buckets hold several steps.
    """

    name: str
    layers: tuple[Layer, ...]
    starts: IntArray
    ends: IntArray
    values: Float64Array
    shown: int
    total: int


@dataclass(frozen=True, slots=True)
class HistogramHistory:
    """One layer's histograms over the steps: `counts[i]` was recorded at `steps[i]`, of `total` that were."""

    steps: IntArray
    counts: CountArray
    edges: Float64Array = field(default_factory=histogram_edges)
    total: int = 0
