from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from root_dash.coefficients.fit import infimum, polar_error, supremum
from root_dash.coefficients.tables import MUON, PAPER, ROBUST, ROBUST_FINE, Coefficients, resolve
from root_dash.optim import ROOT
from root_dash.optim.calibration.online import Calibration, Change

DEFAULT: dict[str, Any] = {"form": "adaptive", "steps": 5}
WIDE = (24, 96)
SQUARE = (32, 32)


def base(step: int, shape: tuple[int, int] = WIDE) -> Tensor:
    """Return a matrix of the run: clipped noise with a few larger directions, as clipped momenta have."""
    generator = torch.Generator().manual_seed(step)
    signal = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
    return torch.randn(shape, generator=generator) + 0.3 * signal


def adopt(calibration: Calibration, step: int) -> list[Change]:
    """Take what is due at a step and put it in place, as a single process does."""
    return calibration.apply(step, calibration.take(step))


def offer_spectrum(calibration: Calibration, step: int, shape: tuple[int, int], sigma: Any) -> None:
    """Offer a matrix with these singular values."""
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix.diagonal().copy_(torch.from_numpy(sigma))
    calibration.offer(step, shape, matrix)


def run(
    calibration: Calibration, steps: range, shapes: tuple[tuple[int, int], ...] = (WIDE,)
) -> Iterator[tuple[int, Change]]:
    """Yield the step and the change of every adoption in these steps."""
    for step in steps:
        for change in adopt(calibration, step):
            yield step, change
        if calibration.due(step):
            for shape in shapes:
                calibration.offer(step, shape, base(step, shape))


@pytest.mark.parametrize("form", ["adaptive", "adanewton"])
def test_it_follows_the_run(form: Any) -> None:
    """After some offers the set of the shape is more accurate on later matrices, and bounded for all matrices."""
    normalization: Any = "schatten8" if form == "adaptive" else "frobenius"
    calibration = Calibration(form, 5, normalization=normalization, every=4)
    changes = [change for _, change in run(calibration, range(1, 21))]
    adopted = calibration.coefficients(WIDE)
    assert changes
    assert changes[-1].after == adopted
    fresh = [torch.linalg.svdvals(base(step).double()).numpy() for step in range(100, 108)]
    errors = [np.mean([polar_error(c, s, normalization) for s in fresh]) for c in (adopted, resolve(form, 5))]
    assert errors[0] < 0.6 * errors[1]
    assert supremum(adopted, noise=0.012) <= (1.06 if form == "adaptive" else 1.3)
    assert infimum(adopted, 1e-3) > 0
    if form == "adanewton":
        assert len(set(adopted)) == 1
        assert supremum(adopted * 4, noise=0.012) <= 1.3


def test_changes_say_what_and_why() -> None:
    """A change names the step, the shape, both sets, both errors and the bound, and the next one goes on from it."""
    calibration = Calibration("adaptive", 5, every=4, lag=3)
    changes = [change for _, change in run(calibration, range(1, 17), (WIDE, SQUARE))]
    previous: dict[tuple[int, int], Any] = {}
    for change in changes:
        assert change.before == previous.get(change.shape, ROBUST)
        assert change.error_after < change.error_before
        assert change.supremum == supremum(change.after, noise=0.012) <= 1.06
        previous[change.shape] = change.after
    assert WIDE in previous
    assert calibration.coefficients(WIDE) != calibration.coefficients(SQUARE)


def test_the_lag_decides_when_and_not_the_machine() -> None:
    """A result is taken exactly `lag` steps after its offer, and both runs of a script get the same bits."""
    runs = [list(run(Calibration("adaptive", 5, every=5, lag=2), range(1, 14))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0]
    assert all(step % 5 == 2 for step, _ in runs[0])


def test_shapes_lie_either_way() -> None:
    """A tall matrix counts as its transpose, in offers and in questions."""
    tall, wide = Calibration("adaptive", 5, every=2), Calibration("adaptive", 5, every=2)
    for step in (2, 4):
        tall.offer(step, WIDE[::-1], base(step).mT)
        wide.offer(step, WIDE, base(step))
        assert adopt(tall, step + 1) == adopt(wide, step + 1)
    assert tall.coefficients(WIDE) == tall.coefficients(WIDE[::-1]) == wide.coefficients(WIDE) != ROBUST


def test_before_any_offer_the_start_is_used() -> None:
    """The universal set, and Muon's triple, serve every shape that was not calibrated."""
    assert Calibration("adaptive", 3).coefficients((5, 7)) == resolve("robust", 3)
    assert Calibration("adanewton", 6).coefficients((5, 7)) == (MUON,) * 6
    assert adopt(Calibration("adaptive", 5), 1000) == []


def test_due_every_so_many_steps() -> None:
    """A calibration is due every `every` steps, but not at step 0."""
    calibration = Calibration("adaptive", 5, every=30)
    assert [step for step in range(100) if calibration.due(step)] == [30, 60, 90]


def finely_fitted() -> Calibration:
    """Return a calibration that has adopted a set for fine arithmetic."""
    calibration = Calibration("adaptive", 5, every=2)
    calibration.offer(2, SQUARE, base(2, SQUARE), fine=True)
    calibration.apply(3, {SQUARE: [*np.ravel(ROBUST_FINE), 0.2, 0.1, 1.055]})
    return calibration


def test_a_set_may_rely_on_fine_arithmetic() -> None:
    """In fine arithmetic a shape starts from the fine set, may adopt sets that bfloat16 does not bear, and resumes."""
    assert Calibration("adaptive", 5).coefficients(SQUARE, fine=True) == ROBUST_FINE
    assert supremum(ROBUST_FINE, noise=0.012) > 1.06
    calibration = finely_fitted()
    assert calibration.coefficients(SQUARE, fine=True) == ROBUST_FINE
    assert resumed(calibration).coefficients(SQUARE, fine=True) == ROBUST_FINE
    calibration.load_state_dict({})
    changes = []
    for step in range(4, 20):
        changes += adopt(calibration, step)
        calibration.offer(step, WIDE, base(step), fine=True)
    assert changes[0].before == ROBUST_FINE
    for change in changes:
        assert change.supremum == supremum(change.after, noise=0.004) <= 1.058


def test_coarse_arithmetic_takes_such_a_set_back() -> None:
    """A shape that was once stepped in bfloat16 starts again, and never relies on fine arithmetic again."""
    for calibration in (finely_fitted(), resumed(finely_fitted())):
        assert calibration.coefficients(SQUARE) == ROBUST
        assert calibration.coefficients(SQUARE, fine=True) == ROBUST
        assert calibration.apply(5, {SQUARE: [*np.ravel(ROBUST_FINE), 0.2, 0.1, 1.055]}) == []


def test_an_older_state_relies_on_nothing() -> None:
    """A state that does not mention the arithmetic resumes with its set, which is safe in any arithmetic."""
    state = finely_fitted().state_dict()
    for shape in state["shapes"]:
        del shape["fine"]
        shape["coefficients"] = [list(triple) for triple in ROBUST]
    calibration = Calibration("adaptive", 5, every=2)
    calibration.load_state_dict(state)
    assert calibration.coefficients(SQUARE, fine=True) == calibration.coefficients(SQUARE) == ROBUST


def test_a_worse_set_is_refused() -> None:
    """A set that was fitted to narrow spectra is not adopted if the newest spectrum, which was held out, is wide."""
    calibration = Calibration("adaptive", 5, every=2, mixture=(1.0, 0.0))
    narrow, wide = np.linspace(1, 0.9, 24), np.geomspace(1, 1e-4, 24)
    offer_spectrum(calibration, 2, WIDE, narrow)
    assert adopt(calibration, 3) == []  # nothing to hold out yet
    offer_spectrum(calibration, 4, WIDE, wide)
    assert adopt(calibration, 5) == []
    assert calibration.coefficients(WIDE) == ROBUST


@pytest.mark.parametrize(
    ("form", "triples"),
    [
        ("adaptive", (PAPER[2048, 2048],) * 5),  # 3.3 in five steps, beyond all bounds with noise
        ("adaptive", (*ROBUST[:4], (3.0, -3.3, 1.54))),  # ends above 1.06
        ("adaptive", (*ROBUST[:4], (-2.7, 3.3, -1.54))),  # turns every direction round
        ("adaptive", ((float("nan"), 0.0, 0.0),) * 5),
        ("adanewton", (PAPER[2048, 2048],) * 5),
        ("adanewton", ((2.5994, -3.0526, 1.4723),) * 5),  # at most 1.18 in five exact steps, without bound in ten
    ],
)
def test_a_set_out_of_bounds_is_refused(form: Any, triples: tuple[Coefficients, ...]) -> None:
    """A set out of bounds is refused, whatever errors its proposal claims."""
    calibration = Calibration(form, 5)
    numbers = [number for triple in triples for number in triple]
    assert calibration.apply(1, {WIDE: [*numbers, 0.5, 0.1, 1.0]}) == []
    assert calibration.coefficients(WIDE) == resolve(form, 5)


def test_what_one_process_found_others_can_apply() -> None:
    """A proposal is `width` numbers, which can be sent in a tensor and give the same set in another process."""
    here, there = Calibration("adaptive", 5, every=2), Calibration("adaptive", 5, every=2)
    found: dict[tuple[int, int], Any] = {}
    for step in (2, 4):
        here.offer(step, WIDE, base(step))
        found = here.take(step + 1)
    proposal = found[WIDE]
    assert here.take(5) == {}
    assert len(proposal) == here.width == 18
    sent = torch.tensor(proposal, dtype=torch.float64).tolist()
    assert here.apply(5, found) == there.apply(5, {WIDE: sent, SQUARE: None})
    assert there.coefficients(WIDE) == here.coefficients(WIDE) != ROBUST
    assert there.coefficients(SQUARE) == ROBUST
    with pytest.raises(ValueError, match="a proposal must hold 18 numbers for steps=5, got 3"):
        there.apply(5, {WIDE: [1.0, 2.0, 3.0]})


@pytest.mark.parametrize("made", ["nan", "inf", "zero", "empty"])
def test_matrices_that_say_nothing_are_ignored(made: str) -> None:
    """NaN, Inf, a zero matrix or an empty matrix change nothing and cause no warning."""
    matrix = {
        "nan": base(1).index_fill(0, torch.tensor(3), torch.nan),
        "inf": base(1).index_fill(0, torch.tensor(3), torch.inf),
        "zero": torch.zeros(WIDE),
        "empty": torch.zeros(0, 8),
    }[made]
    calibration, reference = Calibration("adaptive", 5, every=2), Calibration("adaptive", 5, every=2)
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    calibration.offer(2, shape, matrix)
    assert adopt(calibration, 3) == []
    for step in (4, 6):
        calibration.offer(step, WIDE, base(step))
        reference.offer(step, WIDE, base(step))
        assert adopt(calibration, step + 1) == adopt(reference, step + 1)
    assert calibration.coefficients(WIDE) == reference.coefficients(WIDE)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_scale_will_do(scale: float, dtype: torch.dtype) -> None:
    """Bases of any scale and dtype can be calibrated on, and nothing writes to them."""
    calibration = Calibration("adaptive", 5, every=2)
    for step in (2, 4):
        matrix = (base(step) * scale).to(dtype)
        kept = matrix.clone()
        calibration.offer(step, WIDE, matrix)
        assert torch.equal(matrix, kept)
        matrix.zero_()  # it was looked at when it was offered
        adopt(calibration, step + 1)
    assert calibration.coefficients(WIDE) != ROBUST


def test_a_second_offer_does_not_disturb_the_first() -> None:
    """While the calibration of a shape is pending, further matrices of this shape are ignored."""
    once, twice = Calibration("adaptive", 5, every=4), Calibration("adaptive", 5, every=4)
    for step in (4, 8):
        for calibration in (once, twice):
            calibration.offer(step, WIDE, base(step))
        twice.offer(step + 1, WIDE, base(99))
        assert adopt(once, step + 2) == adopt(twice, step + 2)


def test_a_set_that_stays_is_looked_at_less_often() -> None:
    """If no better set is found, the next calibrations of the shape wait for 2, 4, ... turns; other shapes do not."""
    calibration = Calibration("adaptive", 5, every=10, lag=1)
    square = np.linalg.svd(np.random.default_rng(0).standard_normal((64, 64)), compute_uv=False)
    begun, changed = [], []
    for step in range(10, 400, 10):
        if calibration.wants(step, (64, 64)):
            begun.append(step)
        offer_spectrum(calibration, step, (64, 64), square)
        changed += [change.step for change in adopt(calibration, step + 1)]
    assert changed == [21]
    assert begun == [10, 20, 30, 50, 90, 170, 330]
    assert calibration.wants(330, (64, 96))


@pytest.mark.parametrize("capturable", [False, True])
def test_what_is_asked_for_now_is_done_now(capturable: bool) -> None:
    """`ROOT.calibrate()` calibrates at any step and as often as it is called, and adopts the pending sets."""
    parameter = torch.nn.Parameter(torch.zeros(WIDE))
    optimizer = ROOT([parameter], capturable=capturable)
    changes: list[Change] = []
    optimizer.register_change_observer(changes.append)
    turns = []
    for step in range(4):
        parameter.grad = base(step)
        optimizer.step()
        optimizer.calibrate()
        (group,) = optimizer.state_dict()["param_groups"]
        turns.append(group["turn"])
    assert turns == [1, 2, 3, 4]
    assert [change.shape for change in changes][:1] == [WIDE]


def test_a_fit_that_fails_leaves_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the background becomes a warning, and the training continues with its set."""
    calibration = Calibration("adaptive", 5, every=1)

    def unfit(*arguments: Any, **options: Any) -> None:
        raise np.linalg.LinAlgError("singular matrix")

    monkeypatch.setattr("root_dash.optim.calibration.online.fit", unfit)
    for step in (1, 2):
        offer_spectrum(calibration, step, (4, 6), np.array([1.0, 0.9, 0.8, 0.5]))
        if step == 1:
            assert adopt(calibration, 2) == []
    with pytest.warns(RuntimeWarning, match="a calibration failed, its set stays as it is: .*singular matrix"):
        assert adopt(calibration, 3) == []
    assert calibration.coefficients((4, 6)) == ROBUST


def test_the_reservoir_is_bounded_and_keeps_the_newest() -> None:
    """Only `reservoir` spectra are kept, the newest first."""
    calibration = Calibration("adaptive", 5, every=1, reservoir=3, mixture=(1.0, 1.0))
    for step in range(1, 7):
        # So far apart that none is left out for patience.
        offer_spectrum(calibration, 16 * step, (4, 6), np.array([1.0, 0.9, 0.8, 0.1 * step]))
        adopt(calibration, 16 * step + 1)
    (line,) = calibration.state_dict()["shapes"]
    assert [float(spectrum[-1]) for spectrum in line["spectra"]] == pytest.approx([0.6, 0.5, 0.4])


def resumed(calibration: Calibration) -> Calibration:
    """Return a copy of a calibration that went through a file without pickled code, as in a checkpoint."""
    file = io.BytesIO()
    torch.save(calibration.state_dict(), file)
    file.seek(0)
    fresh = Calibration(calibration.form, calibration.steps, every=calibration.every, lag=calibration.lag)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.fixture(scope="module")
def undisturbed() -> tuple[list[tuple[int, Change]], tuple[Coefficients, ...]]:
    """Return the changes of an uninterrupted run of 13 steps, and its last set."""
    calibration = Calibration("adaptive", 5, every=4, lag=2)
    return list(run(calibration, range(1, 14))), calibration.coefficients(WIDE)


@pytest.mark.parametrize("at", [8, 11])
def test_it_resumes_bit_for_bit(
    at: int, undisturbed: tuple[list[tuple[int, Change]], tuple[Coefficients, ...]]
) -> None:
    """A calibration that is saved at any step, with a result on its way or not, goes on as if nothing had happened."""
    expected, last = undisturbed
    broken = Calibration("adaptive", 5, every=4, lag=2)
    first = list(run(broken, range(1, at + 1)))
    again = resumed(broken)
    for calibration in (again, broken):
        assert first + list(run(calibration, range(at + 1, 14))) == expected
        assert calibration.coefficients(WIDE) == last != ROBUST


def test_a_state_of_another_kind_is_refused() -> None:
    """A state belongs to its form, steps and normalization; an empty one starts afresh."""
    state = Calibration("adaptive", 5).state_dict()
    with pytest.raises(ValueError, match="steps must be 6 as in this calibration, got 5"):
        Calibration("adaptive", 6).load_state_dict(state)
    with pytest.raises(ValueError, match="form must be 'adanewton' as in this calibration, got 'adaptive'"):
        Calibration("adanewton", 5).load_state_dict(state)
    calibration = Calibration("adaptive", 5)
    calibration.apply(1, {WIDE: [*np.ravel(resolve("robust", 5)), 0.2, 0.1, 1.05]})
    calibration.load_state_dict({})
    assert calibration.state_dict()["shapes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "robust", "steps": 5}, "form must be one of 'adaptive', 'adanewton', got 'robust'"),
        ({"form": "adaptive", "steps": 0}, "ns_steps must be a whole number of at least 1, got 0"),
        (DEFAULT | {"every": 0}, "every must be at least 1, got 0"),
        (DEFAULT | {"lag": 101}, "lag must lie between 1 and every=100, got 101"),
        (DEFAULT | {"lag": 0}, "lag must lie between 1 and every=100, got 0"),
        (DEFAULT | {"reservoir": 1}, "reservoir must be at least 2, one to fit and one to hold out, got 1"),
        (
            DEFAULT | {"mixture": (0.0, 0.0)},
            "mixture must be two weights, none negative and one positive, got (0.0, 0.0)",
        ),
        (DEFAULT | {"mixture": (1.0, float("nan"))}, "mixture must be two weights"),
        (DEFAULT | {"normalization": "spectral"}, "normalization must be one of"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The error names the argument, the rule and the value."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Calibration(**arguments)
    assert message in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offering_does_not_stop_the_device() -> None:
    """On CUDA nothing in an offer synchronizes, and the result is the host's up to rounding."""
    here, there = Calibration("adaptive", 5, every=2), Calibration("adaptive", 5, every=2)
    for step in (2, 4):
        matrix = base(step).cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            there.offer(step, WIDE, matrix)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        here.offer(step, WIDE, base(step))
        pairs = zip(adopt(here, step + 1), adopt(there, step + 1), strict=True)
        assert all(one.error_before == pytest.approx(other.error_before, rel=1e-6) for one, other in pairs)
