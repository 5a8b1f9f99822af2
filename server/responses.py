"""Models of the JSON of every answer, for the API's documentation.

The models do not make the answers: `json_records.py` encodes records, which is quicker for large arrays.
`tests/server/test_responses.py` compares the answers of every route with the models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from root_dash.records import Kind
from root_dash.records.verdict import Severity

Number: TypeAlias = float | Literal["Infinity", "-Infinity"] | None
"""A recorded number. NaN, which also stands for a missing number, is null."""

Seconds = Annotated[float, Field(description="Seconds since the epoch.")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HealthJson(_Answer):
    """The sign of life of the server."""

    status: Literal["ok"]


class RunJson(_Answer):
    """A training job."""

    uid: str = Field(description="Unique across databases.")
    name: str
    started_at: Seconds
    config: dict[str, JsonValue] = Field(description="What the user gave `watch` as `config`.")
    cadence: dict[str, int] = Field(description="The interval in steps of each kind of recording; 0 is never.")
    optimizer: dict[str, JsonValue] = Field(description="The optimizer's class and options.")
    rank: int = Field(description="The rank of the process, if each of several processes records a run of its own.")
    ended_at: Seconds | None = Field(description="null while the run trains, or if the run was killed.")
    id: int = Field(description="The number of the run in this database.")
    frames: int = Field(description="Frames that are stored.")
    lost: int = Field(description="Frames that were measured and could not be stored.")
    last_step: int | None
    last_time: Seconds | None


class LayerJson(_Answer):
    """A named parameter tensor of the model."""

    name: str
    shape: list[int]
    algorithm: str = Field(description="root, adamw, or the lower-case name of another optimizer.")
    position: int = Field(description="The place in the model's order, from 0.")
    id: int = Field(description="The number of the layer in this database.")


class NoticeJson(_Answer):
    """A stored frame: all recordings of a step."""

    id: int = Field(description="The cursor.")
    run: int
    seq: int = Field(description="The frame's number in its attempt, from 0.")
    step: int
    time: Seconds
    kinds: list[Kind] = Field(description="The kinds of recording in the frame.")


class StreamedNoticeJson(_Answer):
    """The data of an event of the stream: a new stored frame."""

    id: int = Field(description="The cursor, which is also the id of the event.")
    step: int
    time: Seconds
    kinds: list[Kind] = Field(description="The kinds of recording in the frame.")


class EventJson(_Answer):
    """An event of a run at a step, such as a new coefficient set."""

    kind: str
    text: str
    step: int
    time: Seconds
    id: int


class MeasuredJson(_Answer):
    """A number that a verdict rests on."""

    value: Number
    baseline: Number = Field(description="What the value is compared with; null if nothing is compared.")


class VerdictJson(_Answer):
    """What a rule says of a layer or of the whole run. A verdict replaces an earlier one of the same id."""

    id: int = Field(description="Counts the verdicts of the run from 1.")
    layer: int | None = Field(description="The number of the layer; null if the verdict is about the whole run.")
    rule: str
    severity: Severity
    since: int = Field(description="The first sick step that was recorded.")
    until: int | None = Field(description="The last sick step; null while the fault lasts.")
    text: str = Field(description="A sentence with numbers, for people.")
    evidence: dict[str, MeasuredJson]
    under: int | None = Field(description="The id of the verdict that explains this one.")
    candidates: list[int] = Field(description="Numbers of layers of which one is the cause.")
    cursor: int = Field(description="The frame with which the verdict took its present form.")


class VerdictsJson(_Answer):
    """The verdicts of a run, and where they come from."""

    state: Literal["stored", "replayed", "pending", "failed"] = Field(
        description="stored: with the frames. The others are of a run that was recorded without diagnosis. replayed: "
        "judged in this server's memory. pending: being judged, ask again. failed: the diagnosis failed."
    )
    verdicts: list[VerdictJson]


class GridJson(_Answer):
    """A statistic of all layers over the steps, in buckets of steps."""

    name: str
    layers: list[LayerJson]
    starts: list[int] = Field(description="The first step of each bucket.")
    ends: list[int] = Field(description="The last step of each bucket.")
    values: list[list[Number]] = Field(
        description="A row for each layer, a column for each bucket: the value of largest magnitude in the bucket."
    )
    shown: int
    total: int = Field(description="Recorded steps. If it exceeds `shown`, buckets hold several steps.")


class HistoryJson(_Answer):
    """A statistic or scalar over the steps."""

    name: str
    steps: list[int]
    values: list[Number]
    total: int = Field(description="Recorded steps, of which the answer holds all, or some with all extremes.")


class HistogramJson(_Answer):
    """The distribution of a tensor's entries."""

    counts: list[int] = Field(description="The entries between each edge and the next.")
    nan: int
    inf: int
    step: int
    edges: list[Number] = Field(description="One more than there are counts.")


class QuantilesJson(_Answer):
    """A tensor's quantiles at 65 probabilities, which are equidistant as quantiles of the standard normal."""

    values: list[Number]
    count: int = Field(description="Finite entries of the tensor.")
    step: int


class SpectrumJson(_Answer):
    """Singular values in descending order. A list is empty if there is no such tensor."""

    momentum: list[Number]
    base: list[Number] = Field(description="Singular values of the momentum without its outliers.")
    update: list[Number]
    step: int
    estimated: bool = Field(description="Whether only the largest value is exact, and the distribution estimated.")


class MaskJson(_Answer):
    """The places of the outliers in a matrix."""

    rows: int
    cols: int
    pooled: list[list[int]] = Field(description="Outliers in each of at most 64 x 64 blocks.")
    row_totals: list[int]
    col_totals: list[int]
    largest: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(
        description="Row and column of each entry of largest magnitude."
    )
    largest_values: list[Number]
    packed: str = Field(
        description="The exact mask, row by row, eight entries a byte, in base64; empty if only the map was kept.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    step: int


class StoredAttemptJson(_Answer):
    """The stored part of an attempt, which is the work of a process on a run."""

    attempt: str
    run: int = Field(description="The number of the run in this database.")
    last_seq: int | None = Field(description="The largest number of a stored frame.")
    ended_at: Seconds | None


class InvalidParameterJson(_Answer):
    """A parameter that breaks a rule."""

    in_: str = Field(alias="in", description="path, query or header.")
    name: str
    rule: str


class ProblemJson(_Answer):
    """An error, as RFC 9457 describes problems."""

    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong, in a sentence for a person.")
    errors: list[InvalidParameterJson] | None = Field(None, description="With status 422, the wrong parameters.")


_REASONS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "The token does not allow this, the server takes no recordings, or another site's page sent the request.",
    404: "The database does not hold what is asked for.",
    408: "The body did not arrive in time.",
    409: "Something else is stored under the same name or number, and stays.",
    411: "The message does not say how long it is.",
    412: "The attempt cannot end: its last frame has not arrived.",
    413: "The body is too large.",
    415: "The message is not compressed MessagePack.",
    421: "The server does not go by the name in the Host header.",
    422: "A parameter or the message breaks a rule.",
    431: "Headers and address are too long.",
    500: "The server made a mistake.",
    503: "The database or the server is busy, or the database cannot be read.",
    507: "The disk of the database is full.",
}

ANYWHERE = (400, 421, 431, 500)
"""Statuses of the errors of any request."""

BEHIND_TOKEN = (401, 503)
"""Statuses of the further errors of a request with a token, which reads the database."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of a route's errors by status."""
    return {status: {"model": ProblemJson, "description": _REASONS[status]} for status in statuses}
