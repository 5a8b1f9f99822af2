"""The records that travel from the trainer to the store, and from the store to the server and the dashboard.

Records are frozen dataclasses of NumPy arrays, with the names of `root_dash.vocabulary`. The package needs no torch.
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

# The edges of every histogram. Each octave (power of two) from 2^-48 to 2^16 has four equal bins on both sides of zero,
# as in an HDR histogram: the edges are exact in float32, a bin index is a shift of the float's bits, and histograms of
# different steps, layers and ranks add up. The middle bin holds |x| < 2^-48, and the two outermost bins |x| >= 2^16, so
# that the counts always sum to the number of finite entries.
HISTOGRAM_OCTAVES = (-48, 16)
HISTOGRAM_BINS_PER_OCTAVE = 4


@cache
def histogram_edges() -> Float64Array:
    """Return the 516 ascending edges of the 515 bins, from -inf to inf, symmetric about zero; read-only."""
    low, high = HISTOGRAM_OCTAVES
    steps = np.arange((high - low) * HISTOGRAM_BINS_PER_OCTAVE)
    octave, part = np.divmod(steps, HISTOGRAM_BINS_PER_OCTAVE)
    positive = np.append(np.ldexp(1.0 + part / HISTOGRAM_BINS_PER_OCTAVE, octave + low), [np.ldexp(1.0, high), np.inf])
    edges = np.concatenate([-positive[::-1], positive])
    edges.flags.writeable = False
    return edges


# The probabilities of the Q-Q plot are equidistant quantiles of the standard normal, from -4.265 (p = 1e-5) to +4.265.
QUANTILE_COUNT = 65
QUANTILE_REACH = 4.264890793922825  # the quantile of the standard normal at 1 - 1e-5


@cache
def quantile_positions() -> Float64Array:
    """Return the 65 standard-normal quantiles at which the quantiles of a distribution are recorded; read-only."""
    positions = np.linspace(-QUANTILE_REACH, QUANTILE_REACH, QUANTILE_COUNT)
    positions.flags.writeable = False
    return positions


@cache
def quantile_probabilities() -> Float64Array:
    """Return the 65 probabilities Φ(z) of `quantile_positions`, from 1e-5 to 1 - 1e-5; read-only."""
    from statistics import NormalDist

    probabilities = np.array([NormalDist().cdf(z) for z in quantile_positions()])
    probabilities.flags.writeable = False
    return probabilities


@dataclass(frozen=True, slots=True)
class Layer:
    """A named parameter tensor of the model.

    `position` is the place of the layer in the model's order, from 0. `id` is the store's key, and 0 before storing.
    `algorithm` is `"root"`, `"adamw"`, or the lower-case name of the optimizer that steps the layer. The layer is
    treated as a matrix of `rows` x `cols`: trailing dimensions are flattened, and a vector is a matrix with one row.
    """

    name: str
    shape: tuple[int, ...]
    algorithm: str
    position: int = 0
    id: int = 0

    @property
    def rows(self) -> int:
        """Number of rows of the layer as a matrix."""
        return self.shape[0] if len(self.shape) >= 2 else 1

    @property
    def cols(self) -> int:
        """Number of columns of the layer as a matrix."""
        return self.size // self.rows if self.rows else 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_matrix(self) -> bool:
        """Whether the layer has at least two rows and two columns, and so a spectrum and a mask."""
        return self.rows >= 2 and self.cols >= 2


@dataclass(frozen=True, slots=True)
class Run:
    """A training job. `uid` is unique across stores; `id` is the store's key, and 0 before the run is stored.

    `config` is the user's argument of `watch`; `cadence` maps each kind to its interval in steps. Times are seconds
    since the epoch. `ended_at` is None while the run trains, or if the run was killed.
    """

    uid: str
    name: str
    started_at: float
    config: Mapping[str, Any] = field(default_factory=dict)
    cadence: Mapping[str, int] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """The classes and the options of the optimizers: plain JSON values."""
    rank: int = 0
    """The rank of the process that recorded the run, if each of several processes records a run of its own."""
    ended_at: float | None = None
    id: int = 0
    frames: int = 0
    lost: int = 0
    """Number of frames that were taken but could not be stored."""
    last_step: int | None = None
    last_time: float | None = None

    @property
    def title(self) -> str:
        """The name for people, with any rank above 0: the runs of all ranks have the same name."""
        name = self.name or self.uid
        return f"{name} · rank {self.rank}" if self.rank else name


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt of one process at a run. Its `uid` and the `seq` of a frame name the frame in any store.

    `lost` counts the frames lost after the last stored frame, `last_seq` is the largest `seq` that is stored, and `run`
    is the store's key of the run.
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
    negative side, since the bins mirror each other. `counts.sum() + nan + inf` is the size of the tensor.
    """

    counts: CountArray
    nan: int = 0
    inf: int = 0
    step: int = 0
    edges: Float64Array = field(default_factory=histogram_edges)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The quantiles of a tensor at `quantile_probabilities()`, over its `count` finite entries.

    Quantiles are interpolated linearly between order statistics of the entries, which are rounded to bfloat16. Rounding
    moves an entry by at most 2^-9 of itself, which no plot shows, and makes sorting six times faster.
    """

    values: Float32Array
    count: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, descending, of the momentum M, its base B and the update X. A missing tensor has no values.

    If `estimated`, the values of a large matrix come from stochastic Lanczos quadrature: the largest value is exact,
    the distribution of the other values is an estimate, and the smallest values are too large.
    """

    momentum: Float32Array
    base: Float32Array
    update: Float32Array
    step: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Mask:
    """The entries with |M| > ε, in the layer's own orientation: `rows` x `cols`.

    `packed` is the exact mask, row-major, eight entries in a byte as in `np.packbits`; empty if only the map was
    kept. `pooled[i, j]` counts the outliers in a block of the map of at most 64 x 64 blocks. Block i covers the rows
    from `i * rows // pooled.shape[0]` up to `(i + 1) * rows // pooled.shape[0]`; columns likewise. `largest` holds the
    `(row, col)` of the entries of greatest |M|, and `largest_values` their |M|.
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
        """Return the exact mask as an array of booleans, (rows, cols).

        Raises:
            ValueError: only the map was kept.
        """
        if not self.packed:
            raise ValueError(f"the mask at step {self.step} was kept as a map only: record it with exact masks on")
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=self.rows * self.cols)
        return bits.astype(np.bool_).reshape(self.rows, self.cols)


def outlying(totals: CountArray) -> NDArray[np.bool_]:
    """Return which rows (or columns) of a mask are outliers, given the outliers in each: (n,) -> booleans (n,).

    A row is an outlier if its outliers are more than twice the mean of all rows.
    """
    outlying: NDArray[np.bool_] = totals.astype(np.int64) * totals.size > 2 * totals.sum(dtype=np.int64)
    return outlying


@dataclass(frozen=True, slots=True)
class OutlierCounts:
    """How often each row and column of a layer was `outlying`, over its `recorded` masks up to `step`."""

    recorded: int
    rows: CountArray
    cols: CountArray
    step: int = 0

    def rows_beyond(self, share: float = 0.5) -> IntArray:
        """Return the rows that were outliers in more than a share of the masks, ascending."""
        return np.flatnonzero(self.rows > share * self.recorded)

    def cols_beyond(self, share: float = 0.5) -> IntArray:
        """Return the columns that were outliers in more than a share of the masks, ascending."""
        return np.flatnonzero(self.cols > share * self.recorded)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run at a step, such as a new coefficient set; `id` is the store's key."""

    kind: str
    text: str
    step: int
    time: float
    id: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """All recordings of a step: the unit of writing, of streaming and of resuming.

    Mappings of layers have the layer's `position` as key. `seq` counts the attempt's frames from 0. The attempt and
    `seq` identify a frame, so that no frame is stored twice. `lost` counts the frames that could not be kept since the
    frame before. `cost` is the time in seconds that recording took of the training thread.
    """

    seq: int
    step: int
    time: float
    layers: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    """Positions of the layers in `statistics`, ascending."""
    statistics: Float32Array = field(
        default_factory=lambda: np.empty((0, len(statistic_names("statistics"))), np.float32)
    )
    """A row for each entry of `layers`, a column for each of `statistic_names("statistics")`; NaN: not recorded."""
    histograms: Mapping[int, Mapping[TensorName, Histogram]] = field(default_factory=dict)
    quantiles: Mapping[int, Mapping[TensorName, Quantiles]] = field(default_factory=dict)
    spectra: Mapping[int, tuple[Spectrum, Mapping[str, float]]] = field(default_factory=dict)
    """Spectra with their statistics of kind `"spectra"` by name."""
    masks: Mapping[int, tuple[Mask, Mapping[str, float]]] = field(default_factory=dict)
    """Masks with their statistics of kind `"masks"` by name."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    """Events of the step, or since the frame before."""
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
    """The notice of a stored frame, with its cursor `id`. The stream carries notices instead of the data."""

    id: int
    run: int
    seq: int
    step: int
    time: float
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class History:
    """A statistic or scalar over the steps: `values[i]` was recorded at `steps[i]`, ascending; NaN: not recorded.

    `total` steps were recorded. The points are all of these steps, or a part with all extremes.
    """

    name: str
    steps: IntArray
    values: Float64Array
    total: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """A statistic of all layers over the steps.

    `values[i, j]` belongs to `layers[i]` and to the steps from `starts[j]` to `ends[j]`, both included: the value of
    largest magnitude in this bucket of steps, or NaN if nothing was recorded. `total` steps were recorded and `shown`
    columns are shown: if `total > shown`, a bucket holds several steps.
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
    """A layer's histograms over the steps: `counts[i]` was recorded at `steps[i]`; `total` steps were recorded."""

    steps: IntArray
    counts: CountArray
    edges: Float64Array = field(default_factory=histogram_edges)
    total: int = 0
